"""Checkpoints in the layout in which they lie on the hub, against the pipelines that they were made from."""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from slingstone.networks.latent_diffusion import load
from slingstone.networks.sampling import noise_of_seeds, one_step_sampler
from tests import tiny, tiny_published, tiny_sdxl

PROMPTS = ["a red disc", "a White ring,  twice!"]


def same_weights(found: nn.Module, expected: nn.Module) -> bool:
    weights = found.state_dict()
    return all(torch.equal(weights[name], weight) for name, weight in expected.state_dict().items())


def test_stable_diffusion_is_read_as_published(tmp_path: Path) -> None:
    directory = str(tiny_published.publish_stable_diffusion(tiny.write_pipeline(tmp_path / "sd15")))
    family = load(directory, directory, generator_timestep=625)
    made = tiny.pipeline()
    assert same_weights(family.decoder.vae, made.vae)
    assert same_weights(family.reference.network, made.unet)
    assert same_weights(family.text_encoder.model, made.text_encoder)
    assert family.decoder.vae.config["scaling_factor"] == 0.18215
    expected = made.encode_prompt(PROMPTS, "cpu", 1, do_classifier_free_guidance=False)[0]
    # The pipeline encodes the prompts as one batch.
    torch.testing.assert_close(family.text_encoder.encode(PROMPTS)["text"], expected, rtol=1e-5, atol=1e-5)


def test_the_published_recipe_gives_the_stock_pipelines_picture(tmp_path: Path) -> None:
    """SiD-LSG's: `x0 = (x - sigma e) / alpha` at timestep 625 from `sigma z`, by the stock pipeline's parts."""
    directory = str(tiny_published.publish_stable_diffusion(tiny.write_pipeline(tmp_path / "sd15")))
    family = load(directory, directory, generator_timestep=625)
    stock = StableDiffusionPipeline.from_pretrained(directory, safety_checker=None, feature_extractor=None)
    cumulative = stock.scheduler.alphas_cumprod[625]
    alpha, sigma = cumulative.sqrt(), (1 - cumulative).sqrt()
    z = noise_of_seeds([1, 2], tiny.LATENT_SHAPE)
    with torch.no_grad():
        text = stock.encode_prompt(PROMPTS, "cpu", 1, do_classifier_free_guidance=False)[0]
        x0: Tensor = (sigma * z - sigma * stock.unet(sigma * z, 625, encoder_hidden_states=text).sample) / alpha
        picture = stock.image_processor.postprocess(stock.vae.decode(x0 / 0.18215).sample, output_type="pt")
    ours = one_step_sampler(family, family.generator)(PROMPTS, [1, 2]).images
    # The first decoder layers see latents of size 15.
    torch.testing.assert_close(ours, picture, rtol=0, atol=1e-4)
    assert float(sigma / alpha) == pytest.approx(2.50, abs=5e-3)


def test_both_text_encoders_of_sdxl_are_read_as_published(tmp_path: Path) -> None:
    directory = str(tiny_published.publish_text(tiny_sdxl.write_pipeline(tmp_path / "sdxl")))
    family = load(directory, directory, generator_timestep=399, generator_input="unscaled")
    made = tiny_sdxl.pipeline()
    text, _, pooled, _ = made.encode_prompt(PROMPTS, device="cpu", do_classifier_free_guidance=False)
    found = family.text_encoder.encode(PROMPTS)
    torch.testing.assert_close((found["text"], found["pooled"]), (text, pooled), rtol=1e-5, atol=1e-5)
