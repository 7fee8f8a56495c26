"""Stable Diffusion 3 against diffusers' own pipeline: conditions, eps, the one-step picture, exports."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusion3Pipeline
from torch import Tensor

from slingstone.networks.latent_diffusion import load
from slingstone.networks.protocol import ModelFamily
from slingstone.networks.sampling import noise_of_seeds, one_step_sampler, reference_sampler
from slingstone.objectives.diffusion import diffuse
from tests import tiny_sd3

PROMPTS = ["a red disc", "a white ring that has far more characters than the encoders have tokens"]
SEEDS = [7, 8]
LAST = 999
"""The timestep of pure noise."""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sd3")
    tiny_sd3.write_pipeline(root / "reference", seed=0)
    tiny_sd3.write_pipeline(root / "generator", seed=1)
    return root


@pytest.fixture(scope="module")
def family(checkpoints: Path) -> ModelFamily:
    return load(str(checkpoints / "reference"), str(checkpoints / "generator"), generator_timestep=LAST)


def quiet(pipeline: StableDiffusion3Pipeline) -> StableDiffusion3Pipeline:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def noise() -> Tensor:
    return noise_of_seeds(SEEDS, tiny_sd3.LATENT_SHAPE)


def test_conditions_are_those_of_the_pipeline(family: ModelFamily) -> None:
    expected = tiny_sd3.pipeline().encode_prompt(PROMPTS, None, None, device="cpu")
    condition, null = family.text_encoder.encode(PROMPTS), family.text_encoder.null(2)
    found = condition["text"], null["text"], condition["pooled"], null["pooled"]
    # The pipeline encodes the prompts as one batch, we one by one: equal up to the order of sums.
    torch.testing.assert_close(found, tuple(expected), rtol=1e-4, atol=1e-5)


def test_the_schedule_is_the_schedulers_with_its_shift(family: ModelFamily) -> None:
    scheduler = tiny_sd3.pipeline().scheduler
    sigmas = torch.arange(1, 1001) / 1000
    torch.testing.assert_close(family.schedule.sigma, 3 * sigmas / (1 + 2 * sigmas), rtol=1e-5, atol=0)
    torch.testing.assert_close(family.schedule.sigma.flip(0), scheduler.sigmas, rtol=0, atol=0)
    torch.testing.assert_close(family.schedule.alpha, 1 - family.schedule.sigma, rtol=0, atol=1e-7)


def test_eps_is_that_of_the_pipelines_flow_with_and_without_a_prompt(family: ModelFamily) -> None:
    pipeline = quiet(tiny_sd3.pipeline())
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def keep(_, __: tuple, named: dict, output: tuple) -> None:
        seen.append((named["hidden_states"], named["timestep"], output[0]))

    pipeline.transformer.register_forward_hook(keep, with_kwargs=True)
    # Before the shift, and on the schedule: timesteps 899 and 499.
    call = {"sigmas": [0.9, 0.5], "num_inference_steps": 2, "guidance_scale": 4.0}
    pipeline(PROMPTS, latents=noise(), output_type="latent", **call)
    condition, null = family.text_encoder.encode(PROMPTS), family.text_encoder.null(2)
    assert len(seen) == 2
    for (x_t, told, flow), t in zip(seen, (899, 499), strict=True):
        steps = torch.full((2,), t)
        sigma = family.schedule.sigma[t]
        torch.testing.assert_close(told / 1000, sigma.expand(4), rtol=1e-6, atol=0)
        with torch.no_grad():
            found = [family.reference(part, steps, c) for part, c in zip(x_t.chunk(2), (null, condition), strict=True)]
        # eps = x_t + (1 - sigma) (eps - x0). The pipeline evaluates both halves as one batch.
        torch.testing.assert_close(torch.cat(found), x_t + (1 - sigma) * flow, rtol=0, atol=1e-5)
    unguided, guided = seen[0][2].chunk(2)
    assert float((guided - unguided).abs().max()) > 1e-3, "the prompt changes nothing, so nothing was compared"


def test_a_network_that_answers_with_the_training_target_is_read_as_its_eps(family: ModelFamily) -> None:
    x0, eps, t = noise(), noise().flip(0), torch.tensor([100, 900])
    scheduler = tiny_sd3.pipeline().scheduler
    x_t = diffuse(x0, eps, *family.schedule.at(t))
    torch.testing.assert_close(x_t, scheduler.scale_noise(x0, scheduler.timesteps[LAST - t], eps), rtol=0, atol=1e-6)
    network = type(family.reference)(torch.nn.Identity(), lambda *_: eps - x0, "flow", family.schedule)
    torch.testing.assert_close(network(x_t, t, family.text_encoder.null(2)), eps, rtol=0, atol=1e-5)


def test_the_reference_is_sampled_as_by_the_stock_pipeline(checkpoints: Path, family: ModelFamily) -> None:
    pipeline = quiet(DiffusionPipeline.from_pretrained(checkpoints / "reference"))
    call = {"num_inference_steps": 4, "guidance_scale": 5.0, "latents": noise(), "output_type": "pt"}
    ours = reference_sampler(family, steps=4, guidance=5.0)(PROMPTS, SEEDS)
    torch.testing.assert_close(ours.images, pipeline(PROMPTS, **call).images, rtol=0, atol=1e-4)
    assert ours.network_evaluations == 8
    with pytest.raises(ValueError, match=r"solver is 'dpmsolver\+\+', but flow-matching models are sampled by 'ddim'"):
        reference_sampler(family, steps=4, guidance=5.0, solver="dpmsolver++")(PROMPTS, SEEDS)


def test_an_export_gives_our_picture_in_a_stock_pipeline(tmp_path: Path, family: ModelFamily) -> None:
    family.pipeline.save(family.generator, tmp_path / "export", torch.float32)
    ours = one_step_sampler(family, family.generator)(PROMPTS, SEEDS).images
    seeds = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    pipeline = quiet(DiffusionPipeline.from_pretrained(tmp_path / "export"))
    call = {"num_inference_steps": 1, "guidance_scale": 0, "generator": seeds, "output_type": "pt"}
    torch.testing.assert_close(pipeline(PROMPTS, **call).images, ours, rtol=0, atol=1e-5)


def test_an_export_that_would_start_elsewhere_is_refused(tmp_path: Path, checkpoints: Path) -> None:
    family = load(str(checkpoints / "reference"), str(checkpoints / "generator"), generator_timestep=700)
    with pytest.raises(ValueError, match="generator_timestep is 700, but a flow-matching pipeline takes its one step"):
        family.pipeline.save(family.generator, tmp_path / "export", torch.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dynamic_shifting": True}, "use_dynamic_shifting is true, so there is no one schedule"),
        ({"_class_name": "DDIMScheduler"}, "DDIMScheduler is no FlowMatchEulerDiscreteScheduler"),
    ],
)
def test_a_scheduler_without_one_flow_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    directory = tiny_sd3.write_pipeline(tmp_path / "reference")
    file = directory / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        load(str(directory), str(directory), generator_timestep=LAST)
