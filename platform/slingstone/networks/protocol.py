"""What a training step needs from the networks, and nothing more."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from slingstone.objectives.diffusion import NoiseSchedule

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""By the names that a configuration uses."""

Condition = Mapping[str, Tensor]
"""What a network is conditioned on: named tensors whose first axis is the batch (embeddings, masks, time ids...)."""


@runtime_checkable
class TextEncoder(Protocol):
    """Turns prompts into what the networks are conditioned on."""

    def encode(self, prompts: Sequence[str]) -> Condition:
        """Return the condition of each prompt, without gradient."""
        ...

    def null(self, batch: int) -> Condition:
        """Return the unconditional condition, the second operand of classifier-free guidance."""
        ...


@runtime_checkable
class ImageDecoder(Protocol):
    """Turns latents into RGB pictures; differentiable in the latents."""

    chunk: int
    """Pictures decoded at a time, to bound memory; 0 is the whole batch."""

    def decode(self, latents: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch 3 rows columns"]:
        """Return pictures in [0, 1]."""
        ...


Solver = Literal["ddim", "dpmsolver++"]
"""How the reference is sampled in many steps."""


@runtime_checkable
class Pipeline(Protocol):
    """The family as its users know it: many-step sampling, and a directory that others can load."""

    def sample(
        self,
        noise: Float[Tensor, "batch channel height width"],
        condition: Condition,
        null: Condition,
        steps: int,
        guidance: float,
        solver: Solver,
    ) -> tuple[Float[Tensor, "batch channel height width"], int]:
        """Sample the reference from standard normal `noise`.

        Args:
            noise: where the trajectory begins; the solvers add none of their own.
            condition: of each picture.
            null: the unconditional condition, for guidance.
            steps: number of solver steps.
            guidance: omega in `e_null + omega (e_c - e_null)`; 1 and below is no guidance.
            solver: deterministic DDIM, or DPM-Solver++ of second order.

        Returns:
            Latents x0, and the network evaluations that each picture took (a guided step takes two).
        """
        ...

    def save(self, generator: nn.Module, directory: Path, dtype: torch.dtype) -> None:
        """Write `generator` and the family's other parts as a directory that its library runs in one step."""
        ...


class NoPipeline:
    """The pipeline of a family that is not made of a checkpoint, such as a toy with an exact score."""

    def sample(self, *_: Any, **__: Any) -> Any:
        """Raise: there is nothing to sample with."""
        raise ValueError("this model family has no many-step sampler: load it from a checkpoint")

    def save(self, *_: Any, **__: Any) -> None:
        """Raise: there is nothing to write."""
        raise ValueError("this model family has no layout to export to: load it from a checkpoint")


@dataclass(frozen=True)
class ModelFamily:
    """Everything that one alignment run loads.

    Attributes:
        generator: module `(z, condition) -> x0`, latents of `latent_shape` from standard normal noise, in one call.
        assistant: module `(x_t, t, condition) -> eps`, the noise prediction of the online score network;
            `t` is an integer index into `schedule`, one a sample. The score is `-eps / sigma_t`.
        reference: the same, frozen.
        text_encoder: prompts to conditions.
        decoder: latents to pictures.
        schedule: `alpha_t`, `sigma_t` of the reference's forward process.
        latent_shape: (channel, height, width).
        pipeline: many-step sampling of the reference, and the export of a generator.
    """

    generator: nn.Module
    assistant: nn.Module
    reference: nn.Module
    text_encoder: TextEncoder
    decoder: ImageDecoder
    schedule: NoiseSchedule
    latent_shape: tuple[int, int, int]
    pipeline: Pipeline = field(default_factory=NoPipeline)
