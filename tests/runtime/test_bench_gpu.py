"""The GPU benchmark at tiny sizes on the CPU, and that its full sizes are the published ones."""

import re

import pytest
import torch

from slingstone.runtime.benchmark import architectures, gpu
from slingstone.runtime.benchmark.memory import VARIANTS
from slingstone.runtime.published import PUBLISHED


def test_every_way_of_a_step_is_in_the_table_with_its_time_and_memory() -> None:
    said: list[str] = []
    gpu.report(gpu.plan(tiny=True, device="cpu"), said.append)
    text = "\n".join(said)
    rows = re.findall(r"^\| (tiny [^|]+) \| ([^|]+) \| ([\d.]+) \| ([\d.]+) \|$", text, re.MULTILINE)
    assert [(size, way) for size, way, *_ in rows] == [
        (size, way) for size in ("tiny SDXL, 64 px", "tiny SD1.5, 64 px") for way in VARIANTS
    ]
    memory = {way: float(peak) for _, way, _, peak in rows[: len(VARIANTS)]}
    assert min(memory, key=memory.__getitem__).startswith("LoRA")
    one, many = (float(value) for value in re.findall(r"(?:decoder|steps) \| ([\d.]+) \|$", text, re.MULTILINE))
    (ratio,) = re.findall(r"\(published: 1.88%\) \| ([\d.]+)% \|", text)
    assert float(ratio) == pytest.approx(100 * one / many, rel=0.05)


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("stabilityai/stable-diffusion-xl-base-1.0", architectures.SDXL),
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", architectures.SD15),
    ],
)
def test_the_full_sizes_have_the_published_number_of_weights(
    name: str, architecture: architectures.Architecture
) -> None:
    with torch.device("meta"):
        network, vae = architecture.network(), architecture.autoencoder()
    assert sum(weight.numel() for weight in network.parameters()) == PUBLISHED[name].network
    assert sum(weight.numel() for weight in vae.parameters()) == PUBLISHED[name].vae
