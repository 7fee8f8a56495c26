"""The stand-in for torchvision against PIL and torch, each transform for what torchvision documents of it."""

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

import reward_services.upstream

STAND_IN = Path(reward_services.upstream.__file__).with_name("stand_in")


@pytest.fixture
def transforms(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The stand-in, imported as torchvision for one test: its mere presence would change transformers."""
    monkeypatch.syspath_prepend(STAND_IN)
    yield import_module("torchvision.transforms")
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (31, 44, 3), dtype=np.uint8))


def test_pictures_are_resized_by_pil_and_cropped_at_the_rounded_centre(transforms: ModuleType, picture: Image.Image):
    resized = transforms.Resize(24, interpolation=transforms.InterpolationMode.BICUBIC)(picture)
    assert np.array_equal(resized, picture.resize((34, 24), Image.Resampling.BICUBIC))
    # Half an odd excess goes to the even pixel: 44 - 23 = 21 -> 10; 31 - 24 = 7 -> 4.
    assert np.array_equal(transforms.CenterCrop(23)(picture), np.array(picture)[4:27, 10:33])
    assert np.array_equal(transforms.CenterCrop(24)(picture), np.array(picture)[4:28, 10:34])
    assert transforms.Resize(31)(picture) is picture


def test_tensors_are_in_the_unit_interval_and_normalised_by_channel(transforms: ModuleType, picture: Image.Image):
    tensor = transforms.ToTensor()(picture)
    assert tensor.dtype == torch.float32
    assert torch.equal(tensor, torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255)
    normal = transforms.Normalize((0.1, 0.2, 0.3), (0.5, 0.25, 0.125))(tensor)
    torch.testing.assert_close(normal[2], (tensor[2] - 0.3) / 0.125)


def test_float_tensors_are_resized_with_antialiasing_and_padded_left_top_right_bottom(
    transforms: ModuleType, picture: Image.Image
):
    tensor = transforms.ToTensor()(picture)
    functional = transforms.functional
    resized = functional.resize(tensor, (17, 24), transforms.InterpolationMode.BICUBIC)
    by_pil = np.stack(
        [np.asarray(Image.fromarray(channel.numpy()).resize((24, 17), Image.Resampling.BICUBIC)) for channel in tensor]
    )
    torch.testing.assert_close(resized, torch.from_numpy(by_pil), rtol=0, atol=1e-5)
    padded = functional.pad(tensor, [1, 2, 3, 4], fill=7)
    assert padded.shape == (3, 31 + 6, 44 + 4)
    assert torch.equal(padded[:, 2:-4, 1:-3], tensor)
    assert padded[:, 0].unique().item() == 7


def test_what_it_lacks_refuses_to_be_used(transforms: ModuleType):
    with pytest.raises(NotImplementedError, match="RandomResizedCrop: install torchvision"):
        transforms.RandomResizedCrop(24)
