"""One step at SDXL's size, random weights, in every variant: finite, within memory, everything in its precision."""

import math

import pytest
import torch

from tests.gpu.place import Place, say

pytestmark = pytest.mark.gpu

BF16, FP32 = torch.bfloat16, torch.float32
# GiB at batch 1 and 1024 px. Whole networks: two engines with bf16 weights, fp32 masters, moments and gradients (51 GB
# while each is trained), the average, the reference. Measured on one H200, while the reference was in fp32 (5 GB more):
# 117 recomputed, 107 checkpointed too, 21.7 by adapters; direct gradients did not fit in 139.
BOUNDS = {
    "direct": 139.0,
    "recomputed": 120.0,
    "recomputed, checkpointed": 110.0,
    "LoRA, recomputed, checkpointed": 24.0,
}
MAY_NOT_FIT = "direct"


@pytest.mark.parametrize("name", sorted(BOUNDS, key=BOUNDS.__getitem__))
def test_a_step_of_this_variant(place: Place, name: str) -> None:
    from workbench.benchmark.architecture import SDXL, VARIANTS, sdxl_like

    assert set(VARIANTS) == set(BOUNDS), "a variant without a bound"
    if place.memory_gib < min(BOUNDS[name], 130.0):
        pytest.skip(f"takes up to {BOUNDS[name]:g} GiB, the GPU has {place.memory_gib:.0f}")
    architecture = SDXL if place.real else sdxl_like(side=8, width=32, depth=1)
    try:
        peak, metrics, dtypes = step(place, name, architecture)
    except torch.OutOfMemoryError:
        if name != MAY_NOT_FIT:
            raise
        peak = math.inf
    if math.isinf(peak):  # outside of the handler, whose traceback holds the networks
        pytest.skip(f"does not fit in {place.memory_gib:.0f} GiB")
    say(", ".join(f"{key} {value:.4g}" for key, value in metrics.items()))
    say(f"{name}: {dtypes}")
    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics["nonfinite/assistant"] == metrics["nonfinite/generator"] == 0
    assert metrics["grad_norm/generator"] > 0
    assert metrics["grad_norm/assistant"] > 0
    assert peak < BOUNDS[name]
    # All that the engines run and compare rounds alike; what they step, and the average, is fp32; the decoder overflows
    # in less.
    networks = {"generator": BF16, "assistant": BF16, "reference": BF16}
    assert dtypes == networks | {"decoder": FP32, "average": FP32, "optimizer": FP32}


def step(place: Place, name: str, architecture) -> tuple[float, dict[str, float], dict[str, torch.dtype]]:
    """Take one step, and one more for its time; return peak GiB, metrics and the dtype of each part."""
    from slingstone.config import Runtime
    from workbench.benchmark.architecture import VARIANTS, random_family, trainer_of

    variant = VARIANTS[name]
    runtime = Runtime(engine="torch", num_workers=1, precision="bf16", use_gpu=place.real)
    with place.peak(f"{name}, networks and engines made") as made:
        family = random_family(architecture, variant, place.device)
        trainer = trainer_of(family, variant.gradient, 1, runtime)
    with place.peak(f"{name}, first step") as first:
        metrics = trainer.step()
    with place.peak(f"{name}, second step") as second:
        metrics = trainer.step()
    parts = {
        "generator": family.generator.parameters(),
        "assistant": family.assistant.parameters(),
        "reference": family.reference.parameters(),
        "decoder": family.decoder.vae.parameters(),
        "average": [fragment.values for fragment in trainer.ema.fragments.values()],
        "optimizer": [
            value
            for engine in (trainer.generator, trainer.assistant)
            for state in engine.optimizer.state.values()
            for key, value in state.items()
            if key != "step"
        ],
    }
    return max(made[1], first[1], second[1]), metrics, {part: only_dtype(part, found) for part, found in parts.items()}


def only_dtype(part: str, tensors) -> torch.dtype:
    """Return the dtype that all of them have."""
    dtypes = {tensor.dtype for tensor in tensors}
    assert len(dtypes) == 1, f"{part} is in {dtypes}"
    return dtypes.pop()
