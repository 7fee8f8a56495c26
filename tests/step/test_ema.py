"""The average forgets by images, not by steps, and each rank averages the part that it owns."""

import pytest
import torch
from torch import Tensor

from slingstone.engines.masters import part_of_rank
from slingstone.step.ema import ExponentialMovingAverage, Fragment


@pytest.fixture
def module() -> torch.nn.Linear:
    return torch.nn.Linear(3, 2)


def average_of(module: torch.nn.Module, half_life_images: float) -> ExponentialMovingAverage:
    return ExponentialMovingAverage(lambda: part_of_rank(module.named_parameters()), half_life_images)


@pytest.mark.parametrize("batch", [1, 10, 50])
def test_half_of_the_past_is_left_after_the_half_life_whatever_the_batch(module, batch):
    ema = average_of(module, half_life_images=100.0)
    start = module.weight.detach().clone()
    with torch.no_grad():
        module.weight.add_(1.0)
    for _ in range(200 // batch):
        ema.update(batch)
    # two half-lives: a quarter of the distance remains; fp32 rounding over 200 updates
    torch.testing.assert_close(ema.fragments["weight"].values, start.flatten() + 0.75, rtol=0, atol=1e-5)


def test_a_half_life_of_zero_keeps_the_latest_weights(module):
    ema = average_of(module, half_life_images=0.0)
    with torch.no_grad():
        module.weight.mul_(3.0)
    ema.update(1)
    assert torch.equal(ema.fragments["weight"].values, module.weight.flatten())


def test_fragments_average_like_whole_weights(module):
    def part(of: slice) -> dict[str, Fragment]:
        return {"weight": Fragment(of.start, module.weight.detach().flatten()[of])}

    def low() -> dict[str, Fragment]:
        return part(slice(0, 2))

    def high() -> dict[str, Fragment]:
        return part(slice(2, 6))

    fragments, whole = [ExponentialMovingAverage(own, 10.0) for own in (low, high)], average_of(module, 10.0)
    with torch.no_grad():
        module.weight.add_(torch.randn(2, 3, generator=torch.Generator().manual_seed(0)))
    for ema in (*fragments, whole):
        ema.update(7)
    joined = torch.cat([ema.fragments["weight"].values for ema in fragments])
    assert torch.equal(joined, whole.fragments["weight"].values)


def test_a_saved_average_is_restored(module):
    ema = average_of(module, 10.0)
    other = average_of(torch.nn.Linear(3, 2), 10.0)
    other.load_state_dict(ema.state_dict())
    for name in ("weight", "bias"):
        assert torch.equal(other.fragments[name].values, ema.fragments[name].values)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ({"weight": (0, torch.zeros(8)), "bias": (0, torch.zeros(2))}, r"\['weight'\] differ from the generator's"),
        ({"weight": (0, torch.zeros(6)), "scale": (0, torch.zeros(2))}, r"\['bias', 'scale'\]"),
        ({"weight": (2, torch.zeros(6)), "bias": (0, torch.zeros(2))}, r"\['weight'\]"),
    ],
    ids=["of another shape", "of another name", "of another rank"],
)
def test_the_average_of_another_network_or_rank_is_refused(module, weight: dict[str, tuple[int, Tensor]], message: str):
    with pytest.raises(ValueError, match=message):
        average_of(module, 10.0).load_state_dict(weight)


def test_a_negative_half_life_is_refused(module):
    with pytest.raises(ValueError, match="half_life_images is -1"):
        average_of(module, -1.0)
