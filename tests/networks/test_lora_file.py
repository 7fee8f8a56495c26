"""Generators from LoRA files of others: the picture of diffusers' own pipeline, or a refusal that says why."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import save_file
from torch import Tensor, nn

from slingstone.networks.adapters import TRAINED, Adapter, add_adapter, merged, sharing_copy
from slingstone.networks.latent_diffusion import load
from slingstone.networks.layouts import STABLE_DIFFUSION
from slingstone.networks.sampling import noise_of_seeds
from slingstone.networks.weights_file import network_from_file
from tests import tiny, tiny_pixart, tiny_sdxl
from tests.networks.test_adapters import LORA, PROMPTS, shaken, storages

Weights = dict[str, Tensor]


def kohya(weights: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Return LoRA weights in the dialect in which LCM's and Hyper-SD's are published."""
    found = {}
    for name, weight in weights.items():
        layer, _, matrix = name.removesuffix(".weight").rpartition(".")
        flat = "lora_unet_" + layer.replace(".", "_")
        found[f"{flat}.{'lora_down' if matrix == 'lora_A' else 'lora_up'}.weight"] = weight.half()
        found[f"{flat}.alpha"] = torch.tensor(alpha)
    return found


def trained_weights(network: nn.Module) -> Weights:
    """Return the adapters of a network by the names that peft saves."""
    return {
        name.replace(f".{TRAINED}.", "."): weight.detach().clone()
        for name, weight in network.named_parameters()
        if weight.requires_grad
    }


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, StableDiffusionXLPipeline]:
    """An SDXL pipeline, a file with a LoRA of it, and diffusers' own pipeline with that LoRA."""
    root = tmp_path_factory.mktemp("published")
    directory = str(tiny_sdxl.write_pipeline(root / "sdxl"))
    family = load(directory, directory, generator_timestep=399, lora=LORA)
    network = shaken(family.generator).network
    weights = trained_weights(network)
    file = root / "sdxl-lightning_1step_lora.safetensors"
    save_file(kohya(weights, alpha=2.0), file)
    stock = StableDiffusionXLPipeline.from_pretrained(directory)
    stock.load_lora_weights(str(file))
    return directory, str(file), stock


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_a_published_lora_starts_the_generator_that_diffusers_makes_of_it(published, lora: Adapter | None) -> None:
    directory, file, stock = published
    family = load(directory, file, generator_timestep=399, generator_input="unscaled", lora=lora)
    z, condition = noise_of_seeds([1, 2], family.latent_shape), family.text_encoder.encode(PROMPTS)
    own, ours = copy.deepcopy(family.generator), family.generator
    own.network = stock.unet
    with torch.no_grad():
        expected = own(z, condition)
        torch.testing.assert_close(ours(z, condition), expected, rtol=0, atol=1e-4)
        base = load(directory, directory, generator_timestep=399, generator_input="unscaled").generator
        assert (base(z, condition) - expected).abs().mean() > 1e-3, "the LoRA must matter"
    if lora is None:
        assert all(weight.requires_grad for weight in ours.parameters())
        return
    own_bytes = storages(ours).keys() - storages(family.reference).keys()
    assert sum(storages(ours)[address] for address in own_bytes) < 0.5 * sum(storages(family.reference).values())
    assert all(".trained." in name for name, weight in ours.named_parameters() if weight.requires_grad)
    alone = merged(shaken(ours).network)
    own.network = alone
    with torch.no_grad():
        torch.testing.assert_close(own(z, condition), ours(z, condition), rtol=0, atol=1e-4)


def test_a_lora_of_another_network_is_refused(published, tmp_path: Path) -> None:
    _, file, _ = published
    with pytest.raises(ValueError, match=r"generator .* does not fit the reference's network as a LoRA"):
        load(str(tiny.write_pipeline(tmp_path / "sd")), file, generator_timestep=399)
    pixart = str(tiny_pixart.write_pipeline(tmp_path / "pixart"))
    with pytest.raises(ValueError, match="PixArtAlphaPipeline cannot read"):
        load(pixart, file, generator_timestep=440)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[StableDiffusionPipeline, Weights]:
    """A Stable Diffusion pipeline, and a LoRA of rank 4 of it as diffusers names the weights."""
    directory = tiny.write_pipeline(tmp_path_factory.mktemp("small") / "sd")
    pipeline = StableDiffusionPipeline.from_pretrained(directory, safety_checker=None)
    pipeline.unet.requires_grad_(False)
    adapted = sharing_copy(pipeline.unet)
    add_adapter(adapted, LORA)
    return pipeline, {f"unet.{name}": weight for name, weight in trained_weights(shaken(adapted)).items()}


def settings(**changes: object) -> dict[str, str]:
    """Return a header as diffusers writes it beside a LoRA."""
    config = {"r": 4, "lora_alpha": 4, "target_modules": list(LORA.target_modules), **changes}
    return {"lora_adapter_metadata": json.dumps({f"unet.{name}": value for name, value in config.items()})}


def one_matrix_of_rank_2(weights: Weights) -> Weights:
    a, b = sorted(weights)[:2]
    return weights | {a: weights[a][:2].clone(), b: weights[b][:, :2].clone()}


@pytest.mark.parametrize(
    ("header", "change"),
    [
        ({}, dict),
        (settings(lora_alpha=16), dict),
        (settings(lora_alpha=2, use_rslora=True), dict),
        (settings(alpha_pattern={"to_q": 32}), dict),
        ({"ss_network_alpha": "4.0", "ss_training_comment": "alpha beta", "rank": "64"}, dict),
        ({}, one_matrix_of_rank_2),
        (
            {"ss_network_alpha": "4.0"},
            lambda weights: kohya({n.removeprefix("unet."): w for n, w in weights.items()}, 1.0),
        ),
    ],
    ids=["no header", "alpha", "rslora", "a layer's alpha", "kohya's words", "two ranks", "kohya's alphas"],
)
def test_a_lora_acts_as_in_the_stock_pipeline_whatever_its_header_says(small, tmp_path: Path, header, change) -> None:
    pipeline, weights = small
    file = tmp_path / "lora.safetensors"
    save_file(change(weights), file, metadata={"format": "pt"} | header)
    ours = merged(network_from_file(pipeline.unet, STABLE_DIFFUSION, "generator", str(file))).state_dict()
    stock = StableDiffusionPipeline(**pipeline.components | {"unet": copy.deepcopy(pipeline.unet)})
    stock.load_lora_weights(str(file))
    stock.fuse_lora()
    stock.unload_lora_weights()
    for name, weight in stock.unet.state_dict().items():
        torch.testing.assert_close(ours[name], weight, rtol=1e-4, atol=1e-6)
    moved = max(float((ours[name] - weight).abs().max()) for name, weight in pipeline.unet.state_dict().items())
    assert moved > 1e-2, "the LoRA must matter"


def misnamed(weights: Weights) -> Weights:
    return {name.replace("mid_block.", "mid_blok.", 1): weight for name, weight in weights.items()}


def halves(matrix: str, count: int | None = None) -> Callable[[Weights], Weights]:
    def change(weights: Weights) -> Weights:
        dropped = [name for name in sorted(weights) if f"lora_{matrix}" in name][:count]
        return {name: weight for name, weight in weights.items() if name not in dropped}

    return change


def with_more(**more: Tensor) -> Callable[[Weights], Weights]:
    return lambda weights: weights | {f"unet.{name.replace('__', '.')}": tensor for name, tensor in more.items()}


@pytest.mark.parametrize(
    ("header", "change", "message"),
    [
        ({}, misnamed, r"weights have no place in it, .* first is mid_blok\.attentions"),
        ({}, halves("B"), r"lora_A.weight has no other half, unet.*lora_B.weight"),
        ({}, halves("B", 1), r"lora_A.weight has no other half"),
        ({}, halves("A", 1), r"lora_B.weight has no other half"),
        ({}, with_more(conv_in__dora_scale=torch.ones(8, 1)), "1 weights would be left out.*conv_in.dora_scale"),
        ({}, with_more(conv_in__diff=torch.ones(8, 1)), "no place in it.*conv_in.diff"),
        ({}, with_more(conv_in__alpha=torch.tensor(2.0)), "no place in it.*conv_in.alpha"),
        ({"ss_network_alpha": "1.0"}, dict, r"header says ss_network_alpha = 1, .* acts with 4, its rank"),
        ({"lora_alpha": "8"}, dict, r"header says lora_alpha = 8"),
        (settings(r=8), dict, "does not fit"),
        (settings(colour="red"), dict, "does not fit"),
        ({"lora_adapter_metadata": json.dumps({"r": 4})}, dict, "settings are not of its unet, the first is r"),
        ({"lora_adapter_metadata": "{"}, dict, "does not fit"),
    ],
    ids=[
        *("misnamed layer", "A halves alone", "one A alone", "one B alone", "dora", "difference", "stray alpha"),
        *("kohya's alpha", "alpha", "other rank", "unknown setting", "no prefix", "no json"),
    ],
)
def test_a_lora_that_would_be_read_in_part_is_refused_by_name(small, tmp_path: Path, header, change, message) -> None:
    pipeline, weights = small
    file = tmp_path / "lora.safetensors"
    save_file(change(weights), file, metadata={"format": "pt"} | header)
    with pytest.raises(ValueError, match=message) as caught:
        network_from_file(pipeline.unet, STABLE_DIFFUSION, "generator", str(file))
    assert str(caught.value).startswith(f"generator {str(file)!r} does not fit the reference's network as a LoRA: ")
