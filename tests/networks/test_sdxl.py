"""SDXL against diffusers' own pipeline: conditions, eps, the one-step picture, exports."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, LCMScheduler, StableDiffusionXLPipeline
from torch import Tensor

from slingstone.networks.latent_diffusion import load
from slingstone.networks.protocol import ModelFamily
from slingstone.networks.sampling import noise_of_seeds, one_step_sampler, reference_sampler
from tests import tiny_sdxl

PROMPTS = ["a red disc", "a white ring that has far more characters than the encoders have tokens"]
SEEDS = [7, 8]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sdxl")
    tiny_sdxl.write_pipeline(root / "reference", seed=0)
    tiny_sdxl.write_pipeline(root / "generator", seed=1)
    return root


@pytest.fixture(scope="module")
def family(checkpoints: Path) -> ModelFamily:
    return load_family(checkpoints, checkpoints / "generator")


def load_family(checkpoints: Path, generator: Path) -> ModelFamily:
    """By DMD2's recipe."""
    reference = str(checkpoints / "reference")
    return load(reference, str(generator), generator_timestep=399, generator_input="unscaled")


def stock(directory: Path) -> StableDiffusionXLPipeline:
    pipeline = DiffusionPipeline.from_pretrained(directory)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def noise() -> Tensor:
    return noise_of_seeds(SEEDS, tiny_sdxl.LATENT_SHAPE)


def test_conditions_are_those_of_the_pipeline(family: ModelFamily) -> None:
    expected = tiny_sdxl.pipeline().encode_prompt(PROMPTS, device="cpu", do_classifier_free_guidance=True)
    text, null_text, pooled, null_pooled = expected
    condition, null = family.text_encoder.encode(PROMPTS), family.text_encoder.null(2)
    # The pipeline encodes the prompts as one batch, we one by one: equal up to the order of sums.
    found = condition["text"], null["text"], condition["pooled"], null["pooled"]
    torch.testing.assert_close(found, (text, null_text, pooled, null_pooled), rtol=1e-5, atol=1e-5)
    assert not null["text"].any()
    assert not null["pooled"].any()


def test_networks_are_told_the_size_of_the_picture_with_and_without_a_prompt(family: ModelFamily) -> None:
    sizes = torch.tensor([[48.0, 48.0, 0.0, 0.0, 48.0, 48.0]] * 2)
    assert torch.equal(family.text_encoder.encode(PROMPTS)["time_ids"], sizes)
    assert torch.equal(family.text_encoder.null(2)["time_ids"], sizes)


def test_a_checkpoint_whose_null_is_the_empty_prompt_is_read_so(tmp_path: Path) -> None:
    directory = tiny_sdxl.write_pipeline(tmp_path / "reference")
    index = directory / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"force_zeros_for_empty_prompt": False}))
    family = load(str(directory), str(directory), generator_timestep=399)
    empty = family.text_encoder.encode([""])
    assert empty["text"].any()
    assert all(torch.equal(tensor, empty[name]) for name, tensor in family.text_encoder.null(1).items())


def test_eps_is_the_pipelines_prediction_with_and_without_a_prompt(family: ModelFamily) -> None:
    pipeline = tiny_sdxl.pipeline()
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    pipeline.unet.register_forward_hook(lambda _, arguments, output: seen.append((*arguments[:2], output[0])))
    pipeline.set_progress_bar_config(disable=True)
    pipeline(PROMPTS, num_inference_steps=3, guidance_scale=7.5, latents=noise(), output_type="latent")
    condition, null = family.text_encoder.encode(PROMPTS), family.text_encoder.null(2)
    assert len(seen) == 3
    for x_t, t, expected in seen:
        steps = torch.full((2,), int(t))
        with torch.no_grad():
            found = [family.reference(part, steps, c) for part, c in zip(x_t.chunk(2), (null, condition), strict=True)]
        # The pipeline evaluates both halves as one batch.
        torch.testing.assert_close(torch.cat(found), expected, rtol=0, atol=1e-5)
    unguided, guided = seen[0][2].chunk(2)
    assert float((guided - unguided).abs().max()) > 1e-3, "the prompt changes nothing, so nothing was compared"


def test_one_step_output_is_the_pipelines_under_lcm_at_timestep_399(checkpoints: Path, family: ModelFamily) -> None:
    pipeline = stock(checkpoints / "generator")
    # The generator's UNet under the reference's encoders and decoder.
    for part in ("text_encoder", "text_encoder_2", "vae"):
        getattr(pipeline, part).load_state_dict(getattr(tiny_sdxl.pipeline(seed=0), part).state_dict())
    pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config)
    call = {"timesteps": [399], "guidance_scale": 0, "latents": noise(), "return_dict": False}
    condition = family.text_encoder.encode(PROMPTS)
    with torch.no_grad():
        latents = family.generator(noise(), condition)
    expected = pipeline(PROMPTS, output_type="latent", **call)[0]
    torch.testing.assert_close(latents, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        family.decoder.decode(latents), pipeline(PROMPTS, output_type="pt", **call)[0], rtol=0, atol=1e-5
    )
    # Published for SDXL's schedule at timestep 399.
    assert float(family.schedule.alpha[399]) == pytest.approx(0.65275, abs=1e-5)
    assert float(family.schedule.sigma[399]) == pytest.approx(0.75757, abs=1e-5)


def test_the_reference_is_sampled_as_by_the_stock_pipeline(checkpoints: Path, family: ModelFamily) -> None:
    pipeline = stock(checkpoints / "reference")
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    expected = pipeline(PROMPTS, num_inference_steps=4, guidance_scale=5.0, latents=noise(), output_type="pt").images
    ours = reference_sampler(family, steps=4, guidance=5.0)(PROMPTS, SEEDS)
    torch.testing.assert_close(ours.images, expected, rtol=0, atol=1e-4)
    assert ours.network_evaluations == 8


def test_an_export_gives_our_picture_in_a_stock_pipeline(tmp_path: Path, family: ModelFamily) -> None:
    family.pipeline.save(family.generator, tmp_path / "export", torch.float32)
    ours = one_step_sampler(family, family.generator)(PROMPTS, SEEDS).images
    for call in ({"num_inference_steps": 1}, {"timesteps": [399]}):
        seeds = [torch.Generator().manual_seed(seed) for seed in SEEDS]
        pictures = stock(tmp_path / "export")(PROMPTS, guidance_scale=0, generator=seeds, output_type="pt", **call)
        torch.testing.assert_close(pictures.images, ours, rtol=0, atol=1e-5)
