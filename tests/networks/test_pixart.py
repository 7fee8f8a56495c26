"""PixArt-alpha against diffusers' own pipeline: conditions, eps, the one-step picture, exports."""

from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, PixArtAlphaPipeline
from torch import Tensor

from slingstone.networks.latent_diffusion import load
from slingstone.networks.protocol import ModelFamily
from slingstone.networks.sampling import noise_of_seeds, one_step_sampler, reference_sampler
from tests import tiny_pixart

PROMPTS = ["a Red disc ", "a white ring, and then many more words: " + "and " * 40]
SEEDS = [7, 8]
LEVEL = 2.5
NEAREST = 440
"""The timestep at which `sigma / alpha` of PixArt's schedule is nearest to 2.5."""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pixart")
    tiny_pixart.write_pipeline(root / "reference", seed=0)
    tiny_pixart.write_pipeline(root / "generator", seed=1)
    return root


@pytest.fixture(scope="module")
def family(checkpoints: Path) -> ModelFamily:
    return load_family(checkpoints, NEAREST)


def load_family(checkpoints: Path, timestep: int) -> ModelFamily:
    """By the recipe of SIM's one-step PixArt."""
    reference, generator = str(checkpoints / "reference"), str(checkpoints / "generator")
    return load(reference, generator, generator_timestep=timestep, generator_noise_level=LEVEL)


def quiet(pipeline: PixArtAlphaPipeline) -> PixArtAlphaPipeline:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def noise() -> Tensor:
    return noise_of_seeds(SEEDS, tiny_pixart.LATENT_SHAPE)


def test_conditions_are_those_of_the_pipeline(family: ModelFamily) -> None:
    text, mask, null_text, null_mask = tiny_pixart.pipeline().encode_prompt(PROMPTS, device="cpu")
    condition, null = family.text_encoder.encode(PROMPTS), family.text_encoder.null(2)
    # The pipeline encodes the prompts as one batch, we one by one: equal up to the order of sums.
    torch.testing.assert_close((condition["text"], null["text"]), (text, null_text), rtol=1e-4, atol=1e-5)
    assert torch.equal(condition["mask"], mask)
    assert torch.equal(null["mask"], null_mask)
    assert text.shape[1] == 120
    assert [int(row.sum()) for row in (*mask, null_mask[0])] == [12, 120, 1]


@pytest.mark.parametrize("side", [32, 128])
def test_eps_is_the_pipelines_prediction_with_and_without_a_prompt(tmp_path: Path, side: int) -> None:
    directory = str(tiny_pixart.write_pipeline(tmp_path / "reference", side=side))
    family = load(directory, directory, generator_timestep=NEAREST)
    pipeline = quiet(tiny_pixart.pipeline(side=side))
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def keep(_, arguments: tuple, named: dict, output: tuple) -> None:
        seen.append((arguments[0], named["timestep"], output[0]))

    pipeline.transformer.register_forward_hook(keep, with_kwargs=True)
    z = noise_of_seeds(SEEDS[:1], (4, side, side))
    pipeline(PROMPTS[:1], num_inference_steps=2, guidance_scale=4.5, latents=z, output_type="latent")
    condition, null = family.text_encoder.encode(PROMPTS[:1]), family.text_encoder.null(1)
    assert len(seen) == 2
    for x_t, t, output in seen:
        with torch.no_grad():
            pair = zip(x_t.chunk(2), t.long().chunk(2), (null, condition), strict=True)
            found = torch.cat([family.reference(*arguments) for arguments in pair])
        # The pipeline evaluates both halves as one batch; the last four channels are a variance.
        torch.testing.assert_close(found, output[:, :4], rtol=0, atol=1e-5)
    unguided, guided = seen[0][2].chunk(2)
    assert float((guided - unguided).abs().max()) > 1e-3, "the prompt changes nothing, so nothing was compared"


def test_one_step_output_is_edms_denoiser_at_the_noise_level(family: ModelFamily) -> None:
    """`D = x - s F(x / sqrt(1 + s^2), j)` with `x = s z`, and j the timestep nearest to s = 2.5."""
    condition = family.text_encoder.encode(PROMPTS)
    x = LEVEL * noise()
    with torch.no_grad():
        raw = family.generator.network(
            x / (1 + LEVEL**2) ** 0.5,
            encoder_hidden_states=condition["text"],
            encoder_attention_mask=condition["mask"],
            timestep=torch.full((2,), NEAREST),
        ).sample
        found = family.generator(noise(), condition)
    torch.testing.assert_close(found, x - LEVEL * raw[:, :4], rtol=0, atol=1e-5)
    level = float(family.schedule.sigma[NEAREST] / family.schedule.alpha[NEAREST])
    assert level == pytest.approx(LEVEL, rel=0.01)
    assert abs(level / LEVEL - 1) > 1e-4, "the level lies on the schedule, so nothing was compared"


def test_a_timestep_that_is_not_the_nearest_to_the_noise_level_is_refused(checkpoints: Path) -> None:
    with pytest.raises(ValueError, match=rf"generator_noise_level is 2.5, .* the nearest timestep is {NEAREST}"):
        load_family(checkpoints, 625)


def test_the_reference_is_sampled_as_by_the_stock_pipeline(checkpoints: Path, family: ModelFamily) -> None:
    pipeline = quiet(DiffusionPipeline.from_pretrained(checkpoints / "reference"))
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    call = {"num_inference_steps": 3, "guidance_scale": 4.5, "latents": noise(), "output_type": "pt"}
    ours = reference_sampler(family, steps=3, guidance=4.5)(PROMPTS, SEEDS)
    torch.testing.assert_close(ours.images, pipeline(PROMPTS, **call).images, rtol=0, atol=1e-4)
    assert ours.network_evaluations == 6


def test_an_export_gives_our_picture_in_a_stock_pipeline(tmp_path: Path, family: ModelFamily) -> None:
    family.pipeline.save(family.generator, tmp_path / "export", torch.float32)
    ours = one_step_sampler(family, family.generator)(PROMPTS, SEEDS).images
    pipeline = quiet(DiffusionPipeline.from_pretrained(tmp_path / "export"))
    for call in ({"num_inference_steps": 1}, {"timesteps": [NEAREST], "num_inference_steps": 1}):
        seeds = [torch.Generator().manual_seed(seed) for seed in SEEDS]
        found = pipeline(PROMPTS, guidance_scale=0, generator=seeds, output_type="pt", **call).images
        torch.testing.assert_close(found, ours, rtol=0, atol=1e-5)
