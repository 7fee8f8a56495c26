"""The average forgets by images, not by steps, and never loses the trained weights."""

import pytest
import torch

from slingstone.step.ema import ExponentialMovingAverage


@pytest.fixture
def module() -> torch.nn.Linear:
    return torch.nn.Linear(3, 2)


@pytest.mark.parametrize("batch", [1, 10, 50])
def test_half_of_the_past_is_left_after_the_half_life_whatever_the_batch(module, batch):
    ema = ExponentialMovingAverage(module.named_parameters, half_life_images=100.0)
    start = module.weight.detach().clone()
    with torch.no_grad():
        module.weight.add_(1.0)
    for _ in range(200 // batch):
        ema.update(batch)
    # two half-lives: a quarter of the distance remains; fp32 rounding over 200 updates
    torch.testing.assert_close(ema.shadow["weight"], start + 0.75, rtol=0, atol=1e-5)


def test_a_half_life_of_zero_keeps_the_latest_weights(module):
    ema = ExponentialMovingAverage(module.named_parameters, half_life_images=0.0)
    with torch.no_grad():
        module.weight.mul_(3.0)
    ema.update(1)
    assert torch.equal(ema.shadow["weight"], module.weight)


def test_the_average_of_bf16_weights_moves_by_less_than_bf16_can_show():
    module = torch.nn.Linear(1, 1, bias=False).bfloat16()
    with torch.no_grad():
        module.weight.fill_(1.0)
    ema = ExponentialMovingAverage(module.named_parameters, half_life_images=1000.0)
    with torch.no_grad():
        module.weight.fill_(1.0078125)  # the next bf16
    ema.update(1)
    assert ema.shadow["weight"].dtype == torch.float32
    assert 1 < float(ema.shadow["weight"]) < 1.0001


def test_the_average_is_in_place_inside_and_the_weights_are_back_after_even_after_an_error(module):
    ema = ExponentialMovingAverage(module.named_parameters, half_life_images=100.0)
    average = {name: value.clone() for name, value in ema.shadow.items()}
    with torch.no_grad():
        module.weight.mul_(2.0)
    trained = module.weight.detach().clone()

    def evaluate() -> None:
        with ema.swapped_in():
            assert torch.equal(module.weight, average["weight"])
            raise KeyError

    with pytest.raises(KeyError):
        evaluate()
    assert torch.equal(module.weight, trained)
    assert torch.equal(ema.shadow["weight"], average["weight"])


def test_sharded_weights_average_and_swap_like_whole_ones(module):
    # what a rank of a sharded engine yields: a view of the part that it holds
    halves = [
        ExponentialMovingAverage(lambda part=part: iter([("weight", module.weight.data[:, part])]), 10.0)
        for part in (slice(0, 1), slice(1, 3))
    ]
    whole = ExponentialMovingAverage(module.named_parameters, 10.0)
    with torch.no_grad():
        module.weight.add_(torch.randn(2, 3, generator=torch.Generator().manual_seed(0)))
    for ema in (*halves, whole):
        ema.update(7)
    assert torch.equal(torch.cat([half.shadow["weight"] for half in halves], 1), whole.shadow["weight"])
    with halves[0].swapped_in(), halves[1].swapped_in():
        assert torch.equal(module.weight, whole.shadow["weight"])


def test_a_saved_average_is_restored(module):
    ema = ExponentialMovingAverage(module.named_parameters, 10.0)
    other = ExponentialMovingAverage(torch.nn.Linear(3, 2).named_parameters, 10.0)
    other.load_state_dict(ema.state_dict())
    assert all(torch.equal(other.shadow[name], ema.shadow[name]) for name in ("weight", "bias"))


def test_the_average_of_another_network_is_refused(module):
    ema = ExponentialMovingAverage(module.named_parameters, 10.0)
    with pytest.raises(ValueError, match=r"\['weight'\] differ from the generator's weights"):
        ema.load_state_dict({"weight": torch.zeros(2, 4), "bias": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"\['bias', 'scale'\]"):
        ema.load_state_dict({"weight": torch.zeros(2, 3), "scale": torch.zeros(2)})


def test_a_negative_half_life_is_refused(module):
    with pytest.raises(ValueError, match="half_life_images is -1"):
        ExponentialMovingAverage(module.named_parameters, -1.0)
