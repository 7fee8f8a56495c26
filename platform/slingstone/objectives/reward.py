"""The reward term: `-alpha_rew r(x0, c)` with `r` a weighted sum of reward models."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from slingstone.objectives.diffusion import at_least_fp32

Scored = tuple[Float[Tensor, " batch"], Float[Tensor, "batch 3 rows columns"]]
"""A reward's score of each image, and the gradient of that score with respect to that image."""


def weighted_reward(
    weights: Sequence[float], scored: Sequence[Scored]
) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch 3 rows columns"]]:
    """Return `r_i = sum_k w_k r_k(image_i)` and `d r_i / d image_i`, without averaging over the batch.

    Raises:
        ValueError: if there is no reward, or not one weight a reward.
    """
    if not scored or len(weights) != len(scored):
        raise ValueError(f"rewards: {len(weights)} weights for {len(scored)} results, need one each and at least one")
    score, gradient = (weights[0] * part for part in scored[0])
    for weight, (next_score, next_gradient) in zip(weights[1:], scored[1:], strict=True):
        score, gradient = score + weight * next_score, gradient + weight * next_gradient
    return score, gradient


def decoder_vjp(
    decode: Callable[[Tensor], Tensor],
    latents: Float[Tensor, "batch channel height width"],
    chunk: int = 0,
    graph: Literal["kept", "recomputed"] = "recomputed",
) -> tuple[Float[Tensor, "batch 3 rows columns"], Callable[[Tensor], Tensor]]:
    """Decode now, and pull gradients through the decoder later.

    Args:
        decode: latents to images, each row by itself.
        latents: where to decode; no gradient flows to whoever made them.
        chunk: images decoded at once (0: all).
        graph: `kept` holds the decoder's graph until the pull; `recomputed` holds none and decodes once more, the
            graph of one chunk at a time.

    Returns:
        fp32 images without graph, and `cotangent -> J^T cotangent` at `latents`, to be called once.
    """
    parts = [part.detach() for part in latents.split(chunk or len(latents))]
    leaves = [part.clone().requires_grad_(graph == "kept") for part in parts]
    with torch.set_grad_enabled(graph == "kept"):
        held = [decode(leaf) for leaf in leaves]

    def pull(cotangent: Tensor) -> Tensor:
        gradients = []
        for leaf, images, part in zip(leaves, held, cotangent.split(chunk or len(latents)), strict=True):
            if graph == "recomputed":
                leaf = leaf.requires_grad_()
                images = decode(leaf)
            gradients.append(torch.autograd.grad(images, leaf, part.to(images.dtype))[0])
        return torch.cat(gradients)

    return torch.cat([at_least_fp32(images.detach()) for images in held]), pull
