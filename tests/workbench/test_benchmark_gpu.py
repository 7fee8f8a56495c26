"""The measurement for GPUs, tried with tiny networks on the CPU."""

import re
import sys
from pathlib import Path
from typing import cast

import pytest
import torch

from jobs import bench_gpu
from slingstone.config import Runtime
from slingstone.networks.decoder import VaeDecoder
from slingstone.plan.published_sizes import PUBLISHED
from workbench.benchmark.architecture import VARIANTS, random_family, sdxl_like, trainer_of
from workbench.benchmark.gpu import SDXL

PAGE = "# Benchmarks\n\n## Before\n\nstays\n\n{}\n\nold\n\n## After\n\nstays, too\n"


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["bench_gpu.py", *arguments])
    return bench_gpu.main()


def test_every_variant_is_measured_and_written_into_its_part_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE.format(bench_gpu.HEADING))
    assert call(monkeypatch, "--tiny", "--write", str(page)) == 0
    written = page.read_text()
    assert "old" not in written
    assert written.startswith(PAGE.partition("{}")[0])
    assert written.endswith("\n\n## After\n\nstays, too\n")
    for variant in VARIANTS:
        (seconds,) = re.findall(rf"\| a tiny model \| {re.escape(variant)} \| ([\d.]+) \|", written)
        assert float(seconds) > 0
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


@pytest.mark.parametrize("name", VARIANTS)
def test_what_is_frozen_computes_in_bf16_beside_what_is_trained(name: str) -> None:
    variant = VARIANTS[name]
    family = random_family(sdxl_like(side=8, width=32, depth=1), variant, dtype=torch.bfloat16)

    def dtypes(module: torch.nn.Module, trained: bool) -> set[torch.dtype]:
        return {weight.dtype for weight in module.parameters() if weight.requires_grad == trained}

    assert (dtypes(family.reference, True), dtypes(family.reference, False)) == (set(), {torch.bfloat16})
    for part in (family.generator, family.assistant):  # what is trained is in fp32 until an engine has it
        assert (dtypes(part, True), dtypes(part, False)) == (
            {torch.float32},
            {torch.bfloat16} if variant.lora else set(),
        )
    decoder = cast("VaeDecoder", family.decoder)
    assert (dtypes(decoder, True), dtypes(decoder, False)) == (set(), {torch.float32})

    runtime = Runtime(engine="torch", num_workers=1, precision="bf16")
    trainer_of(family, variant.gradient, 1, runtime).step()
    for part in (family.generator, family.assistant, family.reference):
        assert {weight.dtype for weight in part.parameters()} == {torch.bfloat16}
    assert dtypes(decoder, False) == {torch.float32}
