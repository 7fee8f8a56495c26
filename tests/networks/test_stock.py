"""Any pipeline as a sampler, under diffusers' own code."""

from pathlib import Path

import pytest
import torch

from slingstone.evaluation.protocol import picture_seed
from slingstone.networks.latent_diffusion import load
from slingstone.networks.sampling import one_step_sampler, reference_sampler
from slingstone.networks.stock_pipelines import stock_sampler

PROMPTS = ["a red disc", "a white ring"]
SEEDS = [picture_seed(prompt, 0, 0) for prompt in PROMPTS]


def test_an_export_and_the_reference_give_the_pictures_of_our_own_samplers(checkpoints: Path, tmp_path: Path) -> None:
    family = load(str(checkpoints / "reference"), str(checkpoints / "generator"), generator_timestep=625)
    family.pipeline.save(family.generator, tmp_path / "export", torch.float32)
    ours = one_step_sampler(family, family.generator)(PROMPTS, SEEDS)
    stock = stock_sampler(str(tmp_path / "export"), 1, 0.0)(PROMPTS, SEEDS)
    torch.testing.assert_close(stock.images, ours.images, rtol=0, atol=1e-5)
    assert stock.network_evaluations == 1
    assert stock.seconds > 0
    ours = reference_sampler(family, 3, 2.0)(PROMPTS, SEEDS)
    stock = stock_sampler(str(checkpoints / "reference"), 3, 2.0, scheduler="DDIMScheduler")(PROMPTS, SEEDS)
    assert stock.network_evaluations == ours.network_evaluations == 6
    torch.testing.assert_close(stock.images, ours.images, rtol=0, atol=1e-4)


def test_a_picture_depends_on_its_own_prompt_and_seed_only(checkpoints: Path) -> None:
    sampler = stock_sampler(str(checkpoints / "reference"), 2, 2.0, scheduler="LCMScheduler")
    both, second = sampler(PROMPTS, SEEDS), sampler(PROMPTS[1:], SEEDS[1:])
    # Another batch size, another order of additions.
    torch.testing.assert_close(second.images[0], both.images[1], rtol=0, atol=1e-4)


def test_weights_of_a_file_take_the_place_of_the_networks(checkpoints: Path) -> None:
    file = str(checkpoints / "generator" / "unet" / "diffusion_pytorch_model.safetensors")
    mixed = stock_sampler(str(checkpoints / "reference"), 2, 1.0, weights=file)(PROMPTS, SEEDS)
    plain = stock_sampler(str(checkpoints / "reference"), 2, 1.0)(PROMPTS, SEEDS)
    assert not torch.allclose(mixed.images, plain.images, atol=1e-2)


def test_what_cannot_be_loaded_is_named(checkpoints: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"pipeline '{tmp_path}' cannot be loaded"):
        stock_sampler(str(tmp_path), 1, 0.0)
    with pytest.raises(ValueError, match="NoScheduler"):
        stock_sampler(str(checkpoints / "reference"), 1, 0.0, scheduler="NoScheduler")
