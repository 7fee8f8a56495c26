"""The measurement for GPUs, tried with tiny networks on the CPU."""

import re
import sys
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import cast

import pytest
import torch

from jobs import bench_gpu
from slingstone.config import Runtime
from slingstone.engines.engine import TorchEngine
from slingstone.networks.adapters import called
from slingstone.networks.decoder import VaeDecoder
from slingstone.plan.published_sizes import PUBLISHED
from workbench.benchmark import gpu
from workbench.benchmark.architecture import SDXL, VARIANTS, random_family, sdxl_like, trainer_of

PAGE = "# Benchmarks\n\n## Before\n\nstays\n\n{}\n\nold\n\n## After\n\nstays, too\n"


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["bench_gpu.py", *arguments])
    return bench_gpu.main()


@pytest.mark.slow
def test_every_variant_is_measured_and_written_into_its_part_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE.format(bench_gpu.HEADING))
    assert call(monkeypatch, "--tiny", "--write", str(page)) == 0
    written = page.read_text()
    assert "old" not in written
    assert written.startswith(PAGE.partition("{}")[0])
    assert written.endswith("\n\n## After\n\nstays, too\n")
    said = capsys.readouterr().out
    for way in gpu.REHEARSED:
        (numbers,) = re.findall(rf"\| a tiny model +\| {re.escape(way)} +\| 2 +\| (.*)", written)
        seconds, one, five, share, *_ = (cell.strip(" %") for cell in numbers.split("|"))
        assert float(one) == pytest.approx(2 / float(seconds), rel=0.1)
        assert 0 < float(five) < float(one)
        assert 0 < float(share) < 100
        assert said.index(f"way {way}, batch 2") < said.index("Ceiling:"), "each row is said when it is found"
    own, rival = (float(found) for found in re.findall(r"decoded: ([\d.]+) s", written))
    assert own > 0
    assert rival > 0
    once = bench_gpu.replaced(written, "again")
    assert bench_gpu.replaced(once, "again") == once


def test_without_a_gpu_it_says_what_runs_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert call(monkeypatch) == 1
    assert "--tiny" in capsys.readouterr().err


def test_the_sizes_are_those_of_the_published_checkpoints() -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    published = PUBLISHED["stabilityai/stable-diffusion-xl-base-1.0"]
    with torch.device("meta"):
        unet, vae = UNet2DConditionModel(**SDXL.unet), AutoencoderKL(**SDXL.vae)
    assert sum(weight.numel() for weight in unet.parameters()) == published.network
    assert sum(weight.numel() for weight in vae.parameters()) == published.vae


WAYS = {name: VARIANTS[name] for name in ("direct", "recomputed")} | gpu.WAYS
"""The other two of `VARIANTS` are among them."""


@pytest.mark.parametrize("name", WAYS)
def test_every_part_of_every_variant_is_in_its_precision(name: str) -> None:
    variant = WAYS[name]
    family = random_family(sdxl_like(side=8, width=32, depth=1), variant)
    runtime = Runtime(engine="torch", num_workers=1, precision="bf16", **variant.levers)
    if runtime.compile == "blocks":
        runtime = runtime.model_copy(update={"compile": "none"})  # which changes no dtype, and takes a minute
    trainer = trainer_of(family, variant.gradient, 1, runtime, variant.decoder)
    trainer.step()

    def dtypes(tensors: Iterable[torch.Tensor]) -> set[torch.dtype]:
        return {tensor.dtype for tensor in tensors}

    assert not any(weight.requires_grad for weight in family.reference.parameters())
    engines = (trainer.generator, trainer.assistant)
    for module in (family.reference, *chain(*(called(engine.module) for engine in engines))):
        assert dtypes(module.parameters()) == {torch.bfloat16}
    assert dtypes(cast("VaeDecoder", trainer.family.decoder).parameters()) == {variant.decoder}
    assert dtypes(cast("VaeDecoder", family.decoder).parameters()) == {torch.float32}, "evaluations decode in fp32"
    for engine in engines:
        assert isinstance(engine, TorchEngine)
        moments = [state[key] for state in engine.optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")]
        assert dtypes([*moments, *(fragment.values for fragment in engine.masters().values())]) == {torch.float32}
    assert dtypes(fragment.values for fragment in trainer.ema.fragments.values()) == {torch.float32}
