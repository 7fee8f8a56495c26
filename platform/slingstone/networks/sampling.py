"""Prompts and seeds to pictures: in one step by a generator, or in many by the family's reference."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from slingstone.networks.protocol import ModelFamily, Solver


@dataclass(frozen=True)
class Pictures:
    """What a sampler returns.

    Attributes:
        images: RGB in [0, 1], a picture a prompt.
        seconds: time of the networks and the decoder for the whole batch. Encoding the prompts is not counted: it is
            the same work for every sampler.
        network_evaluations: evaluations of the denoising network for each picture; a guided step counts two.
    """

    images: Float[Tensor, "batch 3 rows columns"]
    seconds: float
    network_evaluations: int


Sampler = Callable[[Sequence[str], Sequence[int]], Pictures]
"""`(prompts, seeds) -> pictures`, one picture for each pair; a picture depends on its own prompt and seed only."""


def noise_of_seeds(
    seeds: Sequence[int], shape: tuple[int, int, int], device: torch.device | str = "cpu"
) -> Float[Tensor, "batch channel height width"]:
    """Return standard normal latents, a seed each; drawn on the CPU, so that every device sees the same noise."""
    draws = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(draws).to(device)


def one_step_sampler(family: ModelFamily, generator: nn.Module) -> Sampler:
    """Return the sampler of one call of `generator` (its EMA, say) and one decode, under the family's encoder."""
    device = next(generator.parameters()).device

    @torch.no_grad()
    def sample(prompts: Sequence[str], seeds: Sequence[int]) -> Pictures:
        condition = family.text_encoder.encode(prompts)
        noise = noise_of_seeds(seeds, family.latent_shape, device)
        start = now(device)
        images = family.decoder.decode(generator(noise, condition))
        return Pictures(images, now(device) - start, network_evaluations=1)

    return sample


def reference_sampler(family: ModelFamily, steps: int, guidance: float, solver: Solver = "ddim") -> Sampler:
    """Return the sampler of the frozen reference with `steps` steps of `solver`.

    Args:
        family: whose pipeline, encoder and decoder are used.
        steps: number of solver steps.
        guidance: classifier-free guidance scale omega, `e_null + omega (e_c - e_null)`; 1 and below is none.
        solver: see `Pipeline.sample`.
    """
    device = next(family.reference.parameters()).device

    @torch.no_grad()
    def sample(prompts: Sequence[str], seeds: Sequence[int]) -> Pictures:
        condition, null = family.text_encoder.encode(prompts), family.text_encoder.null(len(prompts))
        noise = noise_of_seeds(seeds, family.latent_shape, device)
        start = now(device)
        latents, evaluations = family.pipeline.sample(noise, condition, null, steps, guidance, solver)
        images = family.decoder.decode(latents)
        return Pictures(images, now(device) - start, evaluations)

    return sample


def now(device: torch.device) -> float:
    """Return the time in seconds, once the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
