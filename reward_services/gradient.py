"""Scores together with their gradient with respect to the pictures, and back into autograd."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from reward_services.protocol import NoGradientError, PendingReward, RewardFailedError, RewardModel, check_answer


def score(
    model: RewardModel, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str], reward: str = "model"
) -> Float[Tensor, " batch"]:
    """Return the scores alone; RewardFailedError, which names the `reward`, if they are not one a picture."""
    with torch.no_grad():
        return _checked(model.score(images.detach(), prompts), images, reward)


def score_and_gradient(
    model: RewardModel, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str], reward: str = "model"
) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch 3 height width"]]:
    """Return `s_i` and `d s_i / d image_i`, detached.

    One backward pass gives all of them: scores are independent, so row `i` of the gradient of the sum is `s_i`'s own.

    Raises:
        RewardFailedError: naming the `reward`; its scores are not one a picture, or do not depend on the pictures.
    """
    leaf = images.detach().requires_grad_(True)
    with torch.enable_grad():
        scores = _checked(model.score(leaf, prompts), images, reward)
        if not scores.requires_grad:
            remedy = "compute them from the pictures by differentiable operations"
            raise NoGradientError(reward, f"its scores have no gradient with respect to the pictures: {remedy}")
        (gradient,) = torch.autograd.grad(scores.sum(), leaf)
    return scores.detach(), gradient


def _checked(scores: object, images: Tensor, reward: str) -> Tensor:
    """Return what a model gave, if it is one score a picture."""
    if not isinstance(scores, Tensor):
        raise RewardFailedError(reward, f"its model returns a {type(scores).__name__}: return a tensor, [batch]")
    check_answer(reward, images.shape, [scores], gradient=False)
    return scores


def differentiable(images: Float[Tensor, "batch 3 height width"], pending: PendingReward) -> Float[Tensor, " batch"]:
    """Return the scores of a submitted request as a function of `images`, for autograd.

    The backward pass is the vector-Jacobian product `v_i d s_i / d image_i`; nothing is sent again, so neither call
    this within a checkpointed region nor ask for second derivatives. `pending` is what `submit` returned for `images`.
    """
    return _Scores.apply(images, pending)  # pyright: ignore[reportReturnType]


class _Scores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, pending: PendingReward) -> Tensor:
        scores, gradient = pending.result()
        ctx.save_for_backward(gradient.to(images))
        return scores.to(images.device)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,) = ctx.saved_tensors
        return gradient * cotangent.to(gradient.dtype).view(-1, 1, 1, 1), None
