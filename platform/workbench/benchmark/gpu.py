"""Seconds and peak memory of a step at published sizes, and one step against a many-step rival, on random weights."""

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from slingstone.config import Runtime
from slingstone.networks.footprint import LiveBytes
from slingstone.networks.sampling import one_step_sampler
from workbench.benchmark.architecture import SD15, SDXL, VARIANTS, Architecture, Variant, random_family, trainer_of

GIB = 2**30
REPEATS = 5
"""Timed steps, after one that warms up."""
PUBLISHED_PERCENT = 1.88
"""One step of the paper's 2.6B generator in the time of 50 steps of FLUX-dev, by its authors."""
MODELS = {"SD1.5, 512 px": SD15, "SDXL, 1024 px": SDXL}


@dataclass(frozen=True)
class Rival:
    """A FLUX-like transformer that is called once a step.

    Attributes:
        name: for the reader.
        transformer: arguments of diffusers' `FluxTransformer2DModel`; its defaults are FLUX-dev's 12 billion weights.
        image_tokens: of one picture; a token is a square of 16 pixels.
        text_tokens: of a prompt.
        steps: of one picture.
    """

    name: str
    transformer: Mapping[str, Any]
    image_tokens: int
    text_tokens: int = 512
    steps: int = 50


FLUX = Rival("a transformer of FLUX-dev's size", {"guidance_embeds": True}, image_tokens=64 * 64)
TINY = Rival(
    "a tiny transformer",
    {
        "num_layers": 1,
        "num_single_layers": 1,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 16,
        "axes_dims_rope": (4, 6, 6),
        "guidance_embeds": True,
    },
    image_tokens=16,
    text_tokens=8,
    steps=2,
)
"""To try the measurement itself."""


@dataclass(frozen=True)
class Step:
    """Seconds of a step, the middle one, and most bytes at a time; `reason` says why there are none."""

    seconds: float = float("nan")
    peak: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Race:
    """Seconds of one picture: one step of a model, and all steps of a rival."""

    model: str
    own_s: float
    rival: Rival
    rival_s: float


@dataclass(frozen=True)
class Machine:
    """Where it was measured."""

    device: torch.device
    name: str
    versions: str


def machine(device: torch.device) -> Machine:
    """Return the name of a device, and the versions that matter."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({platform.machine()})"
    versions = f"torch {torch.__version__}, CUDA {torch.version.cuda}, diffusers {diffusers.__version__}"
    return Machine(device, name, versions)


def steps(architecture: Architecture, batch: int, device: torch.device, repeats: int = REPEATS) -> dict[str, Step]:
    """Return, by variant, what a whole step of assistant and generator takes in bf16; what does not fit says so."""
    return {name: _step(architecture, batch, variant, device, repeats) for name, variant in VARIANTS.items()}


def _step(architecture: Architecture, batch: int, variant: Variant, device: torch.device, repeats: int) -> Step:
    cuda = device.type == "cuda"
    runtime = Runtime(engine="torch", num_workers=1, precision="bf16", use_gpu=cuda)
    try:
        with _Peak(device) as peak:
            family = random_family(architecture, variant, device, torch.bfloat16)
            trainer = trainer_of(family, variant.gradient, batch, runtime)
            trainer.step()
            seconds = statistics.median(_seconds(trainer.step, device) for _ in range(repeats))
    except torch.OutOfMemoryError:
        return Step(reason="does not fit")
    return Step(seconds, peak.bytes)


def race(model: str, architecture: Architecture, rival: Rival, device: torch.device) -> Race:
    """Time one picture at batch 1: by the one-step generator with its decoder, and by the rival's transformer."""
    family = random_family(architecture, VARIANTS["LoRA, recomputed, checkpointed"], device, torch.bfloat16)
    sample = one_step_sampler(family, family.generator)
    sample([""], [0])
    own = statistics.median(_seconds(lambda: sample([""], [1]), device) for _ in range(REPEATS))
    del family, sample
    denoise = _denoiser(rival, device)
    denoise()
    return Race(model, own, rival, statistics.median(_seconds(denoise, device) for _ in range(2)))


def _denoiser(rival: Rival, device: torch.device) -> Callable[[], Tensor]:
    kind: Any = FluxTransformer2DModel
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)  # made in bf16: in fp32 it would take 48 GB
    try:
        with torch.device(device):
            transformer = kind(**rival.transformer).eval()
            config = transformer.config
            tokens = torch.randn(1, rival.image_tokens, config["in_channels"])
            text = torch.randn(1, rival.text_tokens, config["joint_attention_dim"])
            pooled = torch.randn(1, config["pooled_projection_dim"])
            places = torch.zeros(rival.image_tokens, 3), torch.zeros(rival.text_tokens, 3)
            guidance = torch.full((1,), 3.5) if config["guidance_embeds"] else None
    finally:
        torch.set_default_dtype(default)

    @torch.no_grad()
    def denoise() -> Tensor:
        x = tokens
        for step in range(rival.steps):
            t = torch.full((1,), 1 - step / rival.steps, device=device, dtype=torch.bfloat16)
            flow = transformer(
                hidden_states=x,
                encoder_hidden_states=text,
                pooled_projections=pooled,
                timestep=t,
                img_ids=places[0],
                txt_ids=places[1],
                guidance=guidance,
                return_dict=False,
            )[0]
            x = x - flow / rival.steps
        return x

    return denoise


def report(where: Machine, found: Mapping[str, Mapping[str, Step]], batch: int, race: Race, command: str) -> str:
    """Return the measurement as a part of docs/benchmarks.md."""
    rows = [
        f"| {model} | {variant} | {step.reason or f'{step.seconds:.2f}'} | "
        f"{'' if step.reason else f'{step.peak / GIB:.1f}'} |"
        for model, variants in found.items()
        for variant, step in variants.items()
    ]
    return "\n".join(
        [
            f"    {command}",
            "",
            f"{where.name}; {where.versions}; bf16, plain torch engine, pictures a step: {batch}, random weights.",
            "",
            "| model | step | seconds | peak GiB |",
            "|---|---|---|---|",
            *rows,
            "",
            f"One picture of {race.model} in one step, decoded: {race.own_s:.3f} s. {race.rival.steps} steps of",
            f"{race.rival.name}, not decoded: {race.rival_s:.3f} s. That is {100 * race.own_s / race.rival_s:.2f} %;",
            f"the paper's authors have {PUBLISHED_PERCENT} % for SDXL and FLUX-dev.",
        ]
    )


def _seconds(call: Callable[[], Any], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class _Peak:
    """The most bytes at a time inside it: the allocator's on a GPU, those of tensors on a CPU."""

    bytes = 0

    def __init__(self, device: torch.device) -> None:
        self.device, self.live = device, None if device.type == "cuda" else LiveBytes(device.type)

    def __enter__(self) -> "_Peak":
        if self.live is not None:
            self.live.__enter__()
        else:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        return self

    def __exit__(self, *error: Any) -> None:
        if self.live is not None:
            self.live.__exit__(*error)
            self.bytes = self.live.peak
        else:
            self.bytes = torch.cuda.max_memory_allocated(self.device)
