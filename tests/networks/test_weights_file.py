"""Generators from a single file of weights, as DMD2 publishes its UNet."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from slingstone.networks.latent_diffusion import load
from slingstone.networks.protocol import ModelFamily
from tests import tiny_sdxl


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_sdxl.write_pipeline(tmp_path_factory.mktemp("sdxl") / "reference"))


def weights() -> dict[str, Tensor]:
    return {name: weight.half() for name, weight in tiny_sdxl.pipeline(seed=1).unet.state_dict().items()}


def load_generator(reference: str, file: Path, assistant: str | None = None) -> ModelFamily:
    return load(reference, str(file), assistant, generator_timestep=399, generator_input="unscaled")


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_a_state_dict_becomes_the_generator_in_fp32(tmp_path: Path, reference: str, suffix: str) -> None:
    file = tmp_path / f"dmd2_sdxl_1step_unet_fp16{suffix}"
    torch.save(weights(), file) if suffix == ".bin" else save_file(weights(), file)
    family = load_generator(reference, file, assistant=str(file))
    for network in (family.generator, family.assistant):
        assert {weight.dtype for weight in network.parameters()} == {torch.float32}
        assert all(
            torch.equal(network.network.state_dict()[name], weight.float()) for name, weight in weights().items()
        )
    generator, assistant = family.generator.network, family.assistant.network
    assert generator.conv_in.weight.data_ptr() != assistant.conv_in.weight.data_ptr()
    assert not torch.equal(family.reference.network.conv_in.weight, generator.conv_in.weight)
    assert all(weight.requires_grad for weight in generator.parameters())


def without_a_weight() -> dict[str, Tensor]:
    found = weights()
    del found["conv_in.bias"]
    return found


class Surprise:
    """What a pickle may execute on reading."""

    def __reduce__(self) -> tuple:
        return (print, ("executed",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (without_a_weight, r"1 are missing, added or of another shape, the first is conv_in.bias: missing in the file"),
        (lambda: weights() | {"other.up": torch.zeros(3)}, r"the first is other.up: \(3,\) in the file, none in the"),
        (lambda: weights() | {"conv_in.bias": torch.zeros(3)}, r"conv_in.bias: \(3,\) in the file, \(16,\) in"),
        (lambda: {"state_dict": weights()}, "is no state dict: it must map names to tensors"),
        (lambda: {"conv_in.bias": Surprise()}, "cannot be read as weights"),
    ],
    ids=["missing", "added", "other shape", "wrapped", "code"],
)
def test_a_file_of_another_kind_is_named(
    tmp_path: Path, reference: str, content, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "unet.bin"
    torch.save(content(), file)
    with pytest.raises(ValueError, match=message) as caught:
        load_generator(reference, file)
    assert str(caught.value).startswith(f"generator {str(file)!r}")
    assert "executed" not in capsys.readouterr().out


def test_a_missing_or_damaged_file_is_named(tmp_path: Path, reference: str) -> None:
    with pytest.raises(ValueError, match="no such file; download the weights"):
        load_generator(reference, tmp_path / "absent.bin")
    for name in ("damaged.bin", "damaged.safetensors"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 cut short")
        with pytest.raises(ValueError, match=f"{name}' cannot be read as weights"):
            load_generator(reference, tmp_path / name)
