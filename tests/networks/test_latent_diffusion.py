"""What loading gives, and what it says about checkpoints that cannot be loaded."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from slingstone.networks.latent_diffusion import load
from slingstone.networks.protocol import ModelFamily
from tests import tiny


def test_half_precision_files_are_loaded_in_fp32(tmp_path: Path) -> None:
    directory = str(tiny.write_pipeline(tmp_path / "half", dtype=torch.float16))
    family = load(directory, directory, generator_timestep=625)
    modules = (family.generator, family.assistant, family.reference, family.text_encoder, family.decoder)
    assert {weight.dtype for module in modules for weight in module.parameters()} == {torch.float32}
    half = load_file(Path(directory) / "unet" / "diffusion_pytorch_model.safetensors")
    assert torch.equal(family.reference.network.conv_in.weight, half["conv_in.weight"].float())


def test_each_network_has_its_own_weights_and_only_the_trained_ones_take_gradients(family: ModelFamily) -> None:
    reference, assistant = family.reference.state_dict(), family.assistant.state_dict()
    assert all(torch.equal(weight, assistant[name]) for name, weight in reference.items())
    assert not {weight.data_ptr() for weight in reference.values()} & {w.data_ptr() for w in assistant.values()}
    assert all(weight.requires_grad for net in (family.generator, family.assistant) for weight in net.parameters())
    frozen = (family.reference, family.text_encoder, family.decoder)
    assert not any(weight.requires_grad for net in frozen for weight in net.parameters())
    assert not torch.equal(family.generator.network.conv_in.weight, family.reference.network.conv_in.weight)
    assert family.latent_shape == tiny.LATENT_SHAPE


def test_a_named_assistant_starts_from_its_own_checkpoint(checkpoints: Path) -> None:
    reference, generator = str(checkpoints / "reference"), str(checkpoints / "generator")
    family = load(reference, generator, assistant=generator, generator_timestep=625)
    assert torch.equal(family.assistant.network.conv_in.weight, family.generator.network.conv_in.weight)


def test_gradient_checkpointing_reaches_every_network(checkpoints: Path) -> None:
    reference = str(checkpoints / "reference")
    family = load(reference, reference, generator_timestep=625, gradient_checkpointing=True)
    networks = (family.generator.network, family.assistant.network, family.reference.network, family.decoder.vae)
    assert all(network.is_gradient_checkpointing for network in networks)


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def drop_a_weight(file: Path) -> None:
    weights = load_file(file)
    del weights["conv_in.weight"]
    save_file(weights, file)


UNET = "unet/diffusion_pytorch_model.safetensors"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no index": (lambda d: (d / "model_index.json").unlink(), "no diffusers pipeline: it has no model_index.json"),
    "broken index": (lambda d: (d / "model_index.json").write_text("{"), "model_index.json cannot be used"),
    "other class": (
        lambda d: edit(d / "model_index.json", _class_name="AuraFlowPipeline"),
        "is a AuraFlowPipeline, not a PixArtAlphaPipeline or StableDiffusion3Pipeline or StableDiffusionPipeline or ",
    ),
    "no unet": (lambda d: shutil.rmtree(d / "unet"), "incomplete: unet is missing"),
    "no tokenizer": (lambda d: shutil.rmtree(d / "tokenizer"), "incomplete: tokenizer is missing"),
    "empty tokenizer": (
        lambda d: [f.unlink() for f in (d / "tokenizer").iterdir()],
        "tokenizer has an empty vocabulary",
    ),
    "no unet weights": (lambda d: (d / UNET).unlink(), "unet cannot be used"),
    "truncated unet": (lambda d: truncate(d / UNET), "unet cannot be used"),
    "truncated text encoder": (lambda d: truncate(d / "text_encoder/model.safetensors"), "text_encoder cannot be used"),
    "truncated vae": (lambda d: truncate(d / "vae/diffusion_pytorch_model.safetensors"), "vae cannot be used"),
    "missing weight": (lambda d: drop_a_weight(d / UNET), r"weights in unet/ do not fit unet/config.json.*conv_in"),
    "other shape": (lambda d: edit(d / "unet/config.json", cross_attention_dim=48), "unet"),
    "no scheduler": (lambda d: shutil.rmtree(d / "scheduler"), "incomplete: scheduler is missing"),
    "flow scheduler": (
        lambda d: (d / "scheduler/scheduler_config.json").write_text(
            '{"_class_name": "FlowMatchEulerDiscreteScheduler"}'
        ),
        "FlowMatchEulerDiscreteScheduler has no beta_schedule",
    ),
    "unknown prediction": (
        lambda d: edit(d / "scheduler/scheduler_config.json", prediction_type="energy"),
        "prediction_type is 'energy', must be one of",
    ),
    "terminal zero": (
        lambda d: edit(d / "scheduler/scheduler_config.json", rescale_betas_zero_snr=True),
        "scheduler cannot be used: alphas_cumprod",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_reference_is_named_with_its_damage(tmp_path: Path, checkpoints: Path, damage: str) -> None:
    directory = tmp_path / "damaged"
    shutil.copytree(checkpoints / "reference", directory)
    inflict, message = DAMAGES[damage]
    inflict(directory)
    with pytest.raises(ValueError, match=message) as caught:
        load(str(directory), str(checkpoints / "generator"), generator_timestep=625)
    assert str(caught.value).startswith(f"reference {str(directory)!r}")


def test_a_generator_that_is_no_pipeline_is_named(tmp_path: Path, checkpoints: Path) -> None:
    reference = str(checkpoints / "reference")
    with pytest.raises(ValueError, match=r"generator '.*' is no diffusers pipeline: it has no model_index.json"):
        load(reference, str(tmp_path), generator_timestep=625)
    with pytest.raises(ValueError, match=r"assistant './nowhere': no such directory"):
        load(reference, reference, "./nowhere", generator_timestep=625)


def test_a_generator_of_other_latents_is_refused(tmp_path: Path, checkpoints: Path) -> None:
    reference = str(checkpoints / "reference")
    shutil.copytree(checkpoints / "generator", tmp_path / "other")
    edit(tmp_path / "other" / "unet" / "config.json", sample_size=8)
    with pytest.raises(ValueError, match="its unet has sample_size = 8, the reference's has 6"):
        load(reference, str(tmp_path / "other"), generator_timestep=625)


def test_a_timestep_outside_the_schedule_is_refused(checkpoints: Path) -> None:
    reference = str(checkpoints / "reference")
    with pytest.raises(ValueError, match=r"generator_timestep is 1000, but .* has timesteps 0..999"):
        load(reference, reference, generator_timestep=1000)


def test_a_hub_id_is_loaded_from_the_hubs_cache(
    tmp_path: Path, checkpoints: Path, family: ModelFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    stored = tmp_path / "models--someone--tiny"
    shutil.copytree(checkpoints / "reference", stored / "snapshots" / ("0" * 40))
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text("0" * 40)
    found = load("someone/tiny", str(checkpoints / "generator"), generator_timestep=625)
    assert torch.equal(found.reference.network.conv_in.weight, family.reference.network.conv_in.weight)


def test_a_hub_id_that_cannot_be_read_is_named(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="generator 'someone/nothing' is no directory here, and no hub repository"):
        load(str(checkpoints / "reference"), "someone/nothing", generator_timestep=625)
