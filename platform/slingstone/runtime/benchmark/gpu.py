"""Seconds and peak memory of a generator's step at published sizes, and the latency of one step against fifty."""

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from slingstone.networks.activations import LiveBytes
from slingstone.networks.adapters import cast_frozen
from slingstone.networks.decoder import VaeDecoder
from slingstone.networks.denoiser import OneStepGenerator, ScoreNetwork
from slingstone.networks.outputs import unet_output
from slingstone.networks.protocol import Condition, ModelFamily
from slingstone.objectives.diffusion import NoiseSchedule
from slingstone.runtime.benchmark import architectures
from slingstone.runtime.benchmark.architectures import Architecture
from slingstone.runtime.benchmark.memory import VARIANTS, Variant, three_networks, trainer_of

PUBLISHED_RATIO = 0.0188
"""Of DI*-SDXL's one step to FLUX-dev's fifty, without the text encoders. Source: arXiv:2410.20898."""
FLUX_STEPS = 50


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        sizes: architectures by name.
        flux: arguments of the many-step rival.
        device: where.
        dtype: of weights and activations.
        repeats: timed steps of each.
    """

    sizes: dict[str, Architecture]
    flux: dict[str, Any]
    device: torch.device
    dtype: torch.dtype
    repeats: int = 5


def plan(tiny: bool, device: str) -> Plan:
    """Return the published sizes in bf16, or tiny ones in fp32."""
    if tiny:
        sizes = {"tiny SDXL, 64 px": architectures.TINY_SDXL, "tiny SD1.5, 64 px": architectures.TINY_SD15}
        return Plan(sizes, architectures.TINY_FLUX, torch.device(device), torch.float32, repeats=1)
    sizes = {"SDXL, 1024 px": architectures.SDXL, "SD1.5, 512 px": architectures.SD15}
    return Plan(sizes, architectures.FLUX_DEV, torch.device(device), torch.bfloat16)


def report(of: Plan, say: Callable[[str], None]) -> None:
    """Measure, and say a Markdown table a line at a time, so that what was measured outlives what fails."""
    name = torch.cuda.get_device_name(of.device) if of.device.type == "cuda" else platform.processor() or "CPU"
    say(f"{name}; torch {torch.__version__}; {str(of.dtype).removeprefix('torch.')}; one picture a step\n")
    say("| network | gradients | seconds a step | peak GiB |\n|---|---|---|---|")
    for size, architecture in of.sizes.items():
        for label, variant in VARIANTS.items():
            say(f"| {size} | {label} | {_step(of, architecture, variant)} |")
    say("\n| one picture, without text encoders | seconds |\n|---|---|")
    size, architecture = next(iter(of.sizes.items()))
    one, many = _one_step(of, architecture), _many_steps(of, architecture.side)
    say(f"| {size}, one step and decoder | {one:.4f} |\n| FLUX-dev's size, {FLUX_STEPS} steps | {many:.4f} |")
    say(f"| ratio (published: {PUBLISHED_RATIO:.2%}) | {one / many:.2%} |")


def family_of(of: Plan, architecture: Architecture, variant: Variant) -> ModelFamily:
    """Return a family of random weights on the plan's device."""
    schedule = NoiseSchedule.from_alphas_cumprod(torch.linspace(0.9999, 0.005, 1000, device=of.device))
    with _made_in(of):
        generator, assistant, reference = three_networks(architecture.network(), variant.lora)
        vae = architecture.autoencoder()
    for network in (generator, assistant, reference):
        cast_frozen(network, of.dtype)
    if variant.checkpointed:
        for module in (generator, assistant, reference, vae):
            module.enable_gradient_checkpointing()
    return ModelFamily(
        generator=OneStepGenerator(generator, unet_output, "eps", schedule, 399, "unscaled"),
        assistant=ScoreNetwork(assistant, unet_output, "eps", schedule),
        reference=ScoreNetwork(reference, unet_output, "eps", schedule),
        text_encoder=_Conditions(of, architecture),
        decoder=VaeDecoder(vae),
        schedule=schedule,
        latent_shape=(4, architecture.side // 8, architecture.side // 8),
    )


class _Conditions:
    def __init__(self, of: Plan, architecture: Architecture) -> None:
        self.of = of
        self.architecture = architecture

    def encode(self, prompts: Sequence[str]) -> Condition:
        return self.null(len(prompts))

    def null(self, batch: int) -> Condition:
        with _made_in(self.of):
            return self.architecture.condition(batch)


def _step(of: Plan, architecture: Architecture, variant: Variant) -> str:
    """Return the two cells of a training step, or why there are none."""
    precision = "bf16" if of.dtype == torch.bfloat16 else "fp32"
    try:
        with _peak(of.device) as peak:
            trainer = trainer_of(family_of(of, architecture, variant), variant.gradient, 1, 1, precision)
            trainer.step()
            seconds = median(_timed(of.device, trainer.step) for _ in range(of.repeats))
    except torch.cuda.OutOfMemoryError:
        return "out of memory | "
    return f"{seconds:.3f} | {peak() / 2**30:.2f}"


@torch.no_grad()
def _one_step(of: Plan, architecture: Architecture) -> float:
    family = family_of(of, architecture, VARIANTS["direct"])
    noise = torch.randn(1, *family.latent_shape, device=of.device)
    condition = family.text_encoder.null(1)
    family.decoder.vae.to(of.dtype)  # pyright: ignore[reportAttributeAccessIssue]

    def picture() -> Tensor:
        return family.decoder.decode(family.generator(noise, condition))

    picture()
    return median(_timed(of.device, picture) for _ in range(of.repeats))


@torch.no_grad()
def _many_steps(of: Plan, side: int) -> float:
    """Return the time of the rival's evaluations; its decoder, some hundredths of that, is left out in its favour."""
    with _made_in(of):
        evaluate = architectures.flux_call(of.flux, side)
    evaluate()
    return FLUX_STEPS * median(_timed(of.device, evaluate) for _ in range(of.repeats))


@contextmanager
def _made_in(of: Plan) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(of.dtype)
    try:
        with of.device:
            yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _peak(device: torch.device) -> Iterator[Callable[[], int]]:
    """Yield what returns the most bytes that were allocated; on a CPU those of tensors."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        yield lambda: torch.cuda.max_memory_allocated(device)
        return
    with LiveBytes("cpu") as live:
        yield lambda: live.peak


def _timed(device: torch.device, call: Callable[[], Any]) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
