"""Tiny random rewards, written in the layouts in which the real ones are published."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from reward_services.spec import RewardSpec


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Results are compared bit by bit with those of replicas, which run one thread."""
    torch.set_num_threads(1)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def spec(rewards_root: Path) -> Callable[..., RewardSpec]:
    """Return a function that specifies the tiny reward of a kind."""
    return lambda kind, **changes: RewardSpec(
        **{"name": kind, "model": kind, "checkpoint": str(rewards_root / kind), **changes}
    )
