"""Seconds and peak memory of a step at published sizes, and one step against a many-step rival, on random weights."""

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import diffusers
import torch
from diffusers import FluxTransformer2DModel
from tabulate import tabulate
from torch import Tensor

from slingstone.config import Runtime
from slingstone.networks.sampling import one_step_sampler
from workbench.benchmark.architecture import SD15, SDXL, VARIANTS, Architecture, Variant, random_family, trainer_of

GIB = 2**30
REPEATS = 5
"""Timed steps, after one that warms up."""
PUBLISHED_PERCENT = 1.88
"""One step of the paper's 2.6B generator in the time of 50 steps of FLUX-dev, by its authors."""
MODELS = {"SD1.5, 512 px": SD15, "SDXL, 1024 px": SDXL}


class Rival(NamedTuple):
    """A FLUX-like transformer by arguments of diffusers' `FluxTransformer2DModel`, and what one picture takes of it.

    The defaults of diffusers are FLUX-dev's 12 billion weights; a token of an image is a square of 16 pixels.
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


class Step(NamedTuple):
    """Seconds of a step, the middle one, and the most GiB at a time, which are not counted on a CPU."""

    seconds: float
    peak_gib: float | None


class Race(NamedTuple):
    """Seconds of one picture: one step of a model, and all steps of a rival."""

    model: str
    own_s: float
    rival: Rival
    rival_s: float


def steps(architecture: Architecture, batch: int, device: torch.device, repeats: int) -> dict[str, Step | None]:
    """Return, by variant, what a whole step of assistant and generator takes in bf16; None if it does not fit."""
    found: dict[str, Step | None] = {}
    for name, variant in VARIANTS.items():
        try:
            found[name] = _step(architecture, batch, variant, device, repeats)
        except torch.OutOfMemoryError:
            found[name] = None
    return found


def _step(architecture: Architecture, batch: int, variant: Variant, device: torch.device, repeats: int) -> Step:
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    runtime = Runtime(engine="torch", num_workers=1, precision="bf16", use_gpu=cuda)
    family = random_family(architecture, variant, device, torch.bfloat16)
    trainer = trainer_of(family, variant.gradient, batch, runtime)
    trainer.step()
    seconds = _seconds(trainer.step, device, repeats)
    return Step(seconds, torch.cuda.max_memory_allocated(device) / GIB if cuda else None)


def race(model: str, architecture: Architecture, rival: Rival, device: torch.device) -> Race:
    """Time one picture at batch 1: by the one-step generator with its decoder, and by the rival's transformer."""
    family = random_family(architecture, VARIANTS["LoRA, recomputed, checkpointed"], device, torch.bfloat16)
    sample = one_step_sampler(family, family.generator)
    sample([""], [0])
    own = _seconds(lambda: sample([""], [1]), device, REPEATS)
    del family, sample
    denoise = _denoiser(rival, device)
    denoise()
    return Race(model, own, rival, _seconds(denoise, device, 2))


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


def report(
    device: torch.device, found: Mapping[str, Mapping[str, Step | None]], batch: int, race: Race, command: str
) -> str:
    """Return the measurement as a part of docs/benchmarks.md."""
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({platform.machine()})"
    versions = f"torch {torch.__version__}, CUDA {torch.version.cuda}, diffusers {diffusers.__version__}"
    rows = [
        [model, variant, *(("does not fit", "") if step is None else (f"{step.seconds:.2f}", _gib(step)))]
        for model, variants in found.items()
        for variant, step in variants.items()
    ]
    headings = ["model", "step", "seconds", "peak GiB"]
    return f"""    {command}

{where}; {versions}; bf16, plain torch engine, pictures a step: {batch}, random weights.

{tabulate(rows, headings, "pipe", disable_numparse=True, stralign=None)}

One picture of {race.model} in one step, decoded: {race.own_s:.3f} s. {race.rival.steps} steps of
{race.rival.name}, not decoded: {race.rival_s:.3f} s. That is {100 * race.own_s / race.rival_s:.2f} %;
the paper's authors have {PUBLISHED_PERCENT} % for SDXL and FLUX-dev."""


def _gib(step: Step) -> str:
    return "" if step.peak_gib is None else f"{step.peak_gib:.1f}"


def _seconds(call: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Return the median time of some calls."""
    taken, wait = [], torch.cuda.synchronize if device.type == "cuda" else lambda: None
    for _ in range(repeats):
        wait()
        start = time.perf_counter()
        call()
        wait()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)
