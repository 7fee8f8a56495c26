"""Steps at published sizes on random weights: seconds by stage, share of the ceiling, memory; a rival; text."""

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import diffusers
import torch
from tabulate import tabulate
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from slingstone.config import Runtime
from slingstone.config.paths import ROOT
from slingstone.networks.blocks import compile_blocks
from slingstone.networks.decoder import VaeDecoder, reward_decoder
from slingstone.networks.protocol import ModelFamily
from slingstone.networks.sampling import now, one_step_sampler
from slingstone.networks.text import SdxlTextEncoder
from slingstone.step.trainer import Trainer
from slingstone.worker.throughput import ceiling
from workbench.benchmark.architecture import SD15, SDXL, Architecture, Variant, random_family, trainer_of
from workbench.benchmark.rival import Rival, denoiser

GIB = 2**30
BF16 = torch.bfloat16
REPEATS = 3
"""Timed calls on a GPU, after some that warm up; on a CPU, where nothing but the measurement is tried, one."""
PUBLISHED_PERCENT = 1.88
"""One step of the paper's 2.6B generator in the time of 50 steps of FLUX-dev, by its authors."""
MODELS = {"SD1.5, 512 px": SD15, "SDXL, 1024 px": SDXL}
USEFUL = {"network": {False: (9, 4), True: (8, 3)}, "decoder": 2}
"""Passes that the algorithm asks for, of whole networks and of adapters: a generator's update, an assistant's update.

See the table in docs/scaling.md; what is computed twice to save memory counts once."""
_FAST = {"compile": "blocks", "channels_last": True}
WAYS = {
    "whole": Variant("recomputed", True, False),
    "whole, fast": Variant("recomputed", True, False, {**_FAST, "joint_reference": True}, BF16),
    "whole, fast, decoder's graph kept": Variant(
        "recomputed", True, False, {**_FAST, "keep_decoder_graph": True}, BF16
    ),
    "adapters": Variant("recomputed", True, True),
    "adapters, merged": Variant("recomputed", True, True, {"merge_adapters": True}),
    "adapters, merged, fast": Variant("recomputed", True, True, {**_FAST, "merge_adapters": True}, BF16),
    "adapters, merged, fast, nothing recomputed": Variant(
        "direct", False, True, {**_FAST, "merge_adapters": True}, BF16
    ),
}
"""How steps are taken: `fast` compiles the repeated blocks and decodes in bf16."""
REHEARSED = ("whole", "whole, fast, decoder's graph kept", "adapters, merged, fast, nothing recomputed")
"""Of them, what is tried at tiny size; nothing is compiled there, which would take a minute."""


class Case(NamedTuple):
    """A row of the table: a model, one of `WAYS`, and the pictures of a step."""

    model: str
    way: str
    batch: int


CASES = (
    Case("SDXL, 1024 px", "whole", 4),
    Case("SDXL, 1024 px", "whole, fast", 4),
    Case("SDXL, 1024 px", "adapters, merged, fast", 4),
    Case("SDXL, 1024 px", "adapters, merged", 1),
    Case("SD1.5, 512 px", "whole", 1),
    Case("SD1.5, 512 px", "whole, fast, decoder's graph kept", 8),
    Case("SDXL, 1024 px", "adapters", 4),
    Case("SDXL, 1024 px", "adapters, merged, fast, nothing recomputed", 2),
)
"""What is asked first comes first: where time is over, the rest is left out."""


class Step(NamedTuple):
    """A step of one update of the assistant and one of the generator.

    Attributes:
        seconds: of the step, the middle one.
        update_s: of one more update of the assistant.
        stages: seconds of the parts of the last step.
        peak_gib: the most at a time, which is not counted on a CPU.
        share: of the ceiling that the FLOPs of `USEFUL` reach.
    """

    seconds: float
    update_s: float
    stages: Mapping[str, float]
    peak_gib: float | None
    share: float


class Race(NamedTuple):
    """Seconds of one picture: one step of a model, and all steps of a rival."""

    model: str
    own_s: float
    rival: Rival
    rival_s: float

    @property
    def percent(self) -> float:
        """The first in percent of the second."""
        return 100 * self.own_s / self.rival_s


def step(
    architecture: Architecture, batch: int, variant: Variant, device: torch.device, peak_flops: float
) -> Step | None:
    """Return what a step takes in bf16, next to the device's ceiling in FLOP/s; None if it does not fit."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    runtime = Runtime(engine="torch", num_workers=1, precision="bf16", use_gpu=cuda, **variant.levers)
    try:
        family = random_family(architecture, variant, device)
        network, decoder = forward_flops(family)
        trainer = trainer_of(family, variant.gradient, batch, runtime, variant.decoder)
        return _timed(trainer, batch, USEFUL["network"][variant.lora], (network, decoder), device, peak_flops)
    except torch.OutOfMemoryError:
        return None


def _timed(
    trainer: Trainer,
    batch: int,
    passes: tuple[int, int],
    forward: tuple[int, int],
    device: torch.device,
    peak_flops: float,
) -> Step:
    trainer.step()
    if device.type == "cuda":
        trainer.step()  # a compiled block meets its last new shape
    seconds = _seconds(trainer.step, device, REPEATS)
    metrics = trainer.step()
    stages = {name[8:]: value for name, value in metrics.items() if name.startswith("seconds/") and name[8:] != "step"}
    update = _seconds(trainer._update_assistant, device, REPEATS)
    peak = torch.cuda.max_memory_allocated(device) / GIB if device.type == "cuda" else None
    flops = batch * (sum(passes) * forward[0] + USEFUL["decoder"] * forward[1])
    return Step(seconds, update, stages, peak, flops / seconds / peak_flops)


@torch.no_grad()
def forward_flops(family: ModelFamily) -> tuple[int, int]:
    """Return the FLOPs of one picture's pass through the reference and through the decoder."""
    weight = next(family.reference.parameters())
    latents = torch.zeros(1, *family.latent_shape, device=weight.device)
    t = torch.zeros(1, dtype=torch.int64, device=weight.device)
    condition = family.text_encoder.null(1)
    found = []
    for call in (lambda: family.reference(latents, t, condition), lambda: family.decoder.decode(latents)):
        with FlopCounterMode(display=False) as counter:
            call()
        found.append(counter.get_total_flops())
    return found[0], found[1]


def race(model: str, architecture: Architecture, rival: Rival, device: torch.device) -> Race:
    """Time one picture at batch 1: by the one-step generator with its decoder, and by the rival's transformer."""
    family = random_family(architecture, WAYS["adapters"], device)
    generator: Any = family.generator
    reference: Any = family.reference
    generator.network = nn.Module.to(reference.network, BF16)  # as an adapter is once it is merged
    assert isinstance(family.decoder, VaeDecoder)
    decoder = reward_decoder(family.decoder, None, BF16)
    if device.type == "cuda":
        for module in (generator, decoder):
            compile_blocks(module)
    sample = one_step_sampler(replace(family, decoder=decoder), generator)
    sample([""], [0])
    own = _seconds(lambda: sample([""], [1]), device, REPEATS)
    del family, sample, generator, decoder
    denoise = denoiser(rival, device)
    denoise()
    return Race(model, own, rival, _seconds(denoise, device, 2))


TINY_TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}


def prompts_s(configs: Sequence[Mapping[str, Any]], device: torch.device, prompts: int, at_once: int) -> float:
    """Return how many prompts a pair of SDXL's text encoders of such sizes encodes a second, in bf16."""
    tokenizer = CLIPTokenizer.from_pretrained(ROOT / "platform/slingstone/world/scenes/reference/tokenizer")
    tokenizer.model_max_length = 77
    first, second = (
        CLIPTextConfig(
            **config, projection_dim=config["hidden_size"], vocab_size=49408, eos_token_id=tokenizer.eos_token_id
        )
        for config in configs
    )
    with torch.device(device):
        models = CLIPTextModel(first).eval(), CLIPTextModelWithProjection(second).eval()
    encoder = SdxlTextEncoder(tokenizer, tokenizer, *models, picture_side=1024, zero_null=True).rounding(BF16)
    texts = [f"a red disc and {number} white rings" for number in range(prompts)]

    def encode() -> None:
        for start in range(0, prompts, at_once):
            encoder.encode(texts[start : start + at_once])

    encode()
    return prompts / _seconds(encode, device, REPEATS)


class Measured(NamedTuple):
    """What the page is made of."""

    ceiling: float
    steps: Mapping[Case, Step | None]
    race: Race
    prompts_s: float


def measure(
    models: Mapping[str, Architecture],
    cases: Sequence[Case],
    rival: Rival,
    text: Sequence[Mapping[str, Any]],
    device: torch.device,
    minutes: float,
    say: Callable[[str], None],
) -> Measured:
    """Measure everything and say each row as it is found; cases that begin after so many minutes are left out."""
    end = time.monotonic() + 60 * minutes
    peak = ceiling(device, BF16)
    say(f"ceiling: {peak / 1e12:.3g} TFLOP/s of a large matrix product in bf16")
    found: dict[Case, Step | None] = {}
    prompts, at_once = (2048, 64) if device.type == "cuda" else (8, 4)
    encoded = prompts_s(text, device, prompts, at_once)
    say(f"text: {encoded:.0f} prompts a second by two encoders")
    name, largest = list(models.items())[-1]
    raced = race(name, largest, rival, device)
    say(f"one step {raced.own_s:.3f} s, {rival.name} {raced.rival_s:.3f} s: {raced.percent:.2f} %")
    for case in cases:
        if time.monotonic() > end:
            say(f"{case.model}, {case.way}: left out, {minutes:g} minutes are over")
            continue
        variant = WAYS[case.way]
        if device.type != "cuda":
            variant = variant._replace(levers={**variant.levers, "compile": "none"})
        found[case] = step(models[case.model], case.batch, variant, device, peak)
        say(
            ", ".join(
                f"{heading} {cell}" for heading, cell in zip(HEADINGS, _row(case, found[case]), strict=True) if cell
            )
        )
    return Measured(peak, found, raced, encoded)


HEADINGS = ("model", "way", "batch", "s, K=1", "img/s, K=1", "img/s, K=5", "of the ceiling", "peak GiB", "stages, s")


def _row(case: Case, found: Step | None) -> list[str]:
    if found is None:
        return [case.model, case.way, str(case.batch), "does not fit", "", "", "", "", ""]
    five = found.seconds + 4 * found.update_s
    stages = sorted(found.stages.items(), key=lambda item: -item[1])
    return [
        *(case.model, case.way, str(case.batch), f"{found.seconds:.3f}"),
        *(f"{case.batch / found.seconds:.2f}", f"{case.batch / five:.2f}", f"{found.share:.1%}"),
        "" if found.peak_gib is None else f"{found.peak_gib:.1f}",
        " ".join(f"{name} {seconds:.3f}" for name, seconds in stages[:6]),
    ]


def report(device: torch.device, found: Measured, command: str) -> str:
    """Return the measurement as a part of docs/benchmarks.md."""
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({platform.machine()})"
    versions = f"torch {torch.__version__}, CUDA {torch.version.cuda}, diffusers {diffusers.__version__}"
    rows = [_row(case, step) for case, step in found.steps.items()]
    race = found.race
    return f"""    {command}

{where}; {versions}; bf16, plain torch engine, random weights.
Ceiling: {found.ceiling / 1e12:.3g} TFLOP/s of a large matrix product in the same run. The share counts the FLOPs that
the algorithm asks for, not those that are recomputed. K is the number of the assistant's updates a step.

{tabulate(rows, HEADINGS, "pipe", disable_numparse=True, stralign=None)}

One picture of {race.model} in one step, decoded: {race.own_s:.3f} s. {race.rival.steps} steps of
{race.rival.name}, not decoded: {race.rival_s:.3f} s. That is {race.percent:.2f} %;
the paper's authors have {PUBLISHED_PERCENT} % for SDXL and FLUX-dev.

SDXL's two text encoders encode {found.prompts_s:.0f} prompts a second."""


def _seconds(call: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Return the median time of some calls."""
    taken = []
    for _ in range(repeats if device.type == "cuda" else 1):
        start = now(device)
        call()
        taken.append(now(device) - start)
    return statistics.median(taken)
