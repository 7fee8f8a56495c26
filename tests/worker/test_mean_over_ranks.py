"""What the ranks' numbers become in a chart."""

import math

import pytest
import torch.distributed as dist
from torch import Tensor

from slingstone.worker import loop


def on_two_ranks(own: dict[str, float], other: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Return the mean that the first rank finds: the ranks' tensors are added as a process group would."""
    brought: list[Tensor] = []
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: brought.append(tensor.clone()))
    loop.mean_over_ranks(other)
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: tensor.add_(brought[0]))
    return loop.mean_over_ranks(own)


def test_a_rank_that_kept_no_sample_takes_no_part_in_the_mean_and_a_mean_over_nothing_is_no_number(monkeypatch):
    own = {"reward/one": math.nan, "reward/two": 1.0, "loss/assistant": math.nan, "nonfinite/generator": 4.0}
    other = {"reward/one": -2.0, "reward/two": 2.0, "loss/assistant": math.nan, "nonfinite/generator": 1.0}
    found = on_two_ranks(own, other, monkeypatch)
    assert math.isnan(found.pop("loss/assistant"))
    assert found == {"reward/one": -2.0, "reward/two": 1.5, "nonfinite/generator": 5.0}
    assert on_two_ranks({"loss": math.inf}, {"loss": 1.0}, monkeypatch) == {"loss": math.inf}
