"""Exports as strangers run them: by diffusers alone, in one step."""

from pathlib import Path
from typing import Literal

import pytest
import torch
from diffusers import DiffusionPipeline

from slingstone.networks.latent_diffusion import load
from slingstone.networks.sampling import one_step_sampler
from tests import tiny

PROMPTS = ["a red disc", "a white ring"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a `reference` and a `generator` of other weights."""
    directory = tmp_path_factory.mktemp("checkpoints")
    tiny.write_pipeline(directory / "reference", seed=0)
    tiny.write_pipeline(directory / "generator", seed=1)
    return directory


def run(directory: Path, **call) -> torch.Tensor:
    pipeline = DiffusionPipeline.from_pretrained(directory)
    pipeline.set_progress_bar_config(disable=True)
    seeds = [torch.Generator().manual_seed(seed) for seed in (7, 8)]
    return pipeline(PROMPTS, guidance_scale=0, generator=seeds, output_type="pt", **call).images


@pytest.mark.parametrize(("generator_input", "timestep"), [("scaled", 625), ("unscaled", 399)])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_a_stock_pipeline_gives_the_generators_picture_in_one_step(
    tmp_path: Path,
    checkpoints: Path,
    generator_input: Literal["scaled", "unscaled"],
    timestep: int,
    prediction: str,
) -> None:
    generator = tiny.write_pipeline(tmp_path / "generator", seed=1, prediction_type=prediction)
    family = load(
        str(checkpoints / "reference"),
        str(generator),
        generator_timestep=timestep,
        generator_input=generator_input,
    )
    family.pipeline.save(family.generator, tmp_path / "export", torch.float32)
    ours = one_step_sampler(family, family.generator)(PROMPTS, [7, 8]).images
    for call in ({"num_inference_steps": 1}, {"timesteps": [timestep]}):
        torch.testing.assert_close(run(tmp_path / "export", **call), ours, rtol=0, atol=1e-5)


def test_an_export_loads_again_as_the_same_generator(tmp_path: Path, checkpoints: Path) -> None:
    reference = str(checkpoints / "reference")
    family = load(reference, str(checkpoints / "generator"), generator_timestep=625)
    family.pipeline.save(family.generator, tmp_path / "export", torch.float32)
    again = load(reference, str(tmp_path / "export"), generator_timestep=625)
    for name, weight in family.generator.state_dict().items():
        assert torch.equal(weight, again.generator.state_dict()[name])
    assert again.generator.prediction == family.generator.prediction


def test_a_half_precision_export_halves_the_files_and_runs_without_an_argument(
    tmp_path: Path, checkpoints: Path
) -> None:
    family = load(str(checkpoints / "reference"), str(checkpoints / "generator"), generator_timestep=625)
    before = {name: weight.clone() for name, weight in family.generator.state_dict().items()}
    sizes = []
    for dtype in (torch.float32, torch.float16):
        directory = tmp_path / str(dtype)
        family.pipeline.save(family.generator, directory, dtype)
        sizes.append(sum(file.stat().st_size for file in directory.rglob("*.safetensors")))
    assert sizes[1] < 0.6 * sizes[0]
    ours = one_step_sampler(family, family.generator)(PROMPTS, [7, 8]).images
    # Weights rounded to 11 bits: a few thousandths of the range.
    torch.testing.assert_close(run(directory, num_inference_steps=1), ours, rtol=0, atol=1e-2)
    for name, weight in family.generator.state_dict().items():
        assert torch.equal(weight, before[name]), "the export converted the weights in training"
