"""The samplers against diffusers' pipeline called directly."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline
from torch import Tensor

from slingstone.evaluation.protocol import evaluate, merge
from slingstone.networks.embeddings import EmbeddingStore
from slingstone.networks.latent_diffusion import load
from slingstone.networks.protocol import ModelFamily, NoPipeline
from slingstone.networks.sampling import noise_of_seeds, one_step_sampler, reference_sampler
from tests import tiny

PROMPTS = ["a red disc", "a white ring"]


@pytest.mark.parametrize(
    ("solver", "scheduler"), [("ddim", DDIMScheduler), ("dpmsolver++", DPMSolverMultistepScheduler)]
)
@pytest.mark.parametrize(("guidance", "evaluations"), [(4.0, 10), (1.0, 5), (0.0, 5)])
def test_the_reference_is_sampled_as_diffusers_samples_it(
    checkpoints: Path,
    family: ModelFamily,
    solver: Literal["ddim", "dpmsolver++"],
    scheduler: type,
    guidance: float,
    evaluations: int,
) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(checkpoints / "reference")
    pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        PROMPTS,
        num_inference_steps=5,
        guidance_scale=guidance,
        generator=[torch.Generator().manual_seed(seed) for seed in (7, 8)],
        output_type="pt",
    ).images
    found = reference_sampler(family, 5, guidance, solver)(PROMPTS, [7, 8])
    # Five steps carry the rounding of other kernels into the pixels.
    torch.testing.assert_close(found.images, expected, rtol=0, atol=1e-4)
    assert found.network_evaluations == evaluations
    assert found.seconds > 0


def test_a_reference_in_bf16_is_sampled_close_to_the_exact_one_with_its_text_encoder_elsewhere(
    checkpoints: Path, family: ModelFamily, tmp_path: Path
) -> None:
    exact = reference_sampler(family, 5, 4.0)(PROMPTS, [7, 8]).images
    half = load(str(checkpoints / "reference"), str(checkpoints / "generator"), generator_timestep=625)
    half.reference.bfloat16()
    store = EmbeddingStore(tmp_path, "encoder", torch.float32, ["", *PROMPTS])
    store.fill(half.text_encoder.encode)
    half.text_encoder.read_from(store)
    half.text_encoder.to("meta")
    found = reference_sampler(half, 5, 4.0)(PROMPTS, [7, 8]).images
    assert found.dtype == torch.float32
    assert 0 < float((found - exact).abs().mean()) < 0.02


def test_counting_evaluations_leaves_no_hook_behind(family: ModelFamily) -> None:
    reference_sampler(family, 2, 3.0)(PROMPTS, [1, 2])
    assert not family.reference.network._forward_pre_hooks


def test_a_picture_depends_on_its_own_prompt_and_seed_only(family: ModelFamily) -> None:
    for sampler in (one_step_sampler(family, family.generator), reference_sampler(family, 3, 4.0)):
        pair = sampler(PROMPTS, [7, 8]).images
        alone = sampler(PROMPTS[1:], [8]).images
        # Kernels differ with the size of the batch, in the last digits.
        torch.testing.assert_close(pair[1:], alone, rtol=0, atol=1e-4)


def test_one_step_is_one_generator_call_and_one_decode(family: ModelFamily) -> None:
    pictures = one_step_sampler(family, family.generator)(PROMPTS, [7, 8])
    z = torch.stack([torch.randn(tiny.LATENT_SHAPE, generator=torch.Generator().manual_seed(seed)) for seed in (7, 8)])
    with torch.no_grad():
        expected = family.decoder.decode(family.generator(z, family.text_encoder.encode(PROMPTS)))
    assert torch.equal(pictures.images, expected)
    assert pictures.network_evaluations == 1


def test_noise_is_standard_normal_and_its_seeds_own() -> None:
    noise = noise_of_seeds(range(64), (4, 16, 16))
    # 65,536 draws: the standard errors of mean and deviation are 0.004 and 0.003.
    assert float(noise.mean()) == pytest.approx(0, abs=0.016)
    assert float(noise.std()) == pytest.approx(1, abs=0.012)
    assert torch.equal(noise[5:6], noise_of_seeds([5], (4, 16, 16)))


def test_a_family_without_a_pipeline_says_so(tmp_path: Path) -> None:
    noise = torch.zeros(1, 1, 1, 1)
    with pytest.raises(ValueError, match="no many-step sampler"):
        NoPipeline().sample(noise, {}, {}, 1, 1.0, "ddim")
    with pytest.raises(ValueError, match="no layout to export to"):
        NoPipeline().save(torch.nn.Identity(), tmp_path, torch.float32)


def test_the_pipeline_is_assembled_from_the_familys_own_parts(family: ModelFamily) -> None:
    assembled = family.pipeline._assemble(DDIMScheduler())
    assert isinstance(assembled, StableDiffusionPipeline)
    assert assembled.unet is family.reference.network


def test_shards_of_real_networks_merge_to_the_same_digits(family: ModelFamily) -> None:
    def measured(world: int) -> dict[str, float | None]:
        sampler = one_step_sampler(family, family.generator)

        def rewards(images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
            return {"brightness": images.mean((1, 2, 3))}

        prompts = [f"a disc {i}" for i in range(10)]
        settings = {"rewards": rewards, "images_per_prompt": 2, "batch_size": 4}
        shards = [evaluate(sampler, prompts, shard=(rank, world), **settings) for rank in range(world)]
        metrics = merge(shards).metrics
        return {name: metrics[name].mean for name in ("rewards/brightness", "diversity", "network_evaluations")}

    assert measured(1) == measured(2) == measured(3)
