"""A run small enough for a test: the tiny random pipeline, tiny random rewards, a few steps.

Imports slingstone only inside the fixtures: conftest.py loads this file before jaxtyping's hook is there.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

WriteRun = Callable[..., Path]


@pytest.fixture(scope="session")
def micro_checkpoints(tmp_path_factory) -> Path:
    from tests import tiny

    directory = tmp_path_factory.mktemp("micro")
    tiny.write_pipeline(directory / "reference", seed=0)
    tiny.write_pipeline(directory / "generator", seed=1)
    tiny.write_prompts(directory / "prompts.txt")
    return directory


@pytest.fixture(scope="session")
def micro_tree(micro_checkpoints, rewards_root) -> dict[str, Any]:
    """A complete run as plain values: 4 steps of 8 images, the first on the assistant alone."""
    optimizer = {"lr": 1e-3, "warmup_steps": 2}
    reward = {"num_cpus": 0, "deadline_s": 120, "tokenizer": str(rewards_root / "tokenizer")}
    return {
        "name": "micro",
        "storage": "set by the test",
        "models": {
            "reference": str(micro_checkpoints / "reference"),
            "generator": str(micro_checkpoints / "generator"),
            "generator_timestep": 625,
        },
        "objective": {"reward_weight": 10.0},
        "rewards": {
            "services": [
                {"name": "pickscore", "model": "pickscore", "checkpoint": str(rewards_root / "pickscore")} | reward,
                {"name": "hps", "model": "hps", "checkpoint": str(rewards_root / "hps"), "weight": 0} | reward,
            ]
        },
        "data": {"prompts": str(micro_checkpoints / "prompts.txt")},
        "training": {
            "num_images": 32,
            "warmup_images": 8,
            "batch_size": 8,
            "generator_optimizer": optimizer,
            "assistant_optimizer": optimizer,
            "ema_half_life_images": 8,
            "checkpoint_every_images": 16,
            "grid_every_images": 16,
        },
        "evaluation": {
            "prompts": str(micro_checkpoints / "prompts.txt"),
            "num_prompts": 6,
            "batch_size": 4,
            "grid_prompts": 2,
            "reference": {"steps": 2, "guidance": 2.0},
        },
    }


@pytest.fixture
def write_run(micro_tree, tmp_path) -> WriteRun:
    """Write the run's YAML under a storage of its own; return its path."""

    def write(storage: Path = tmp_path) -> Path:
        path = storage / "run.yaml"
        path.write_text(yaml.safe_dump(micro_tree | {"storage": str(storage)}))
        return path

    return write


@pytest.fixture
def micro(write_run) -> Callable[..., Any]:
    """Return a function that takes overrides and returns the `Experiment`, its paths absolute."""
    from slingstone.config import load
    from slingstone.driver.preflight import prepare

    return lambda *overrides: prepare(load(write_run(), overrides))
