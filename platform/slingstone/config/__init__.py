"""A run as one frozen pydantic tree. Imports neither torch nor ray, so that a mistake shows in half a second."""

from slingstone.config.experiment import Experiment
from slingstone.config.loading import ConfigError, flatten, load, to_yaml
from slingstone.config.rewards import FixedScale, RewardEntry, Rewards, RunningScale
from slingstone.config.tree import (
    KL,
    Data,
    Evaluation,
    Guidance,
    Models,
    Objective,
    Optimizer,
    PseudoHuber,
    ReferenceSampling,
    Runtime,
    Section,
    SquaredL2,
    TimestepRange,
    Tracking,
    Training,
)

__all__ = [
    "KL",
    "ConfigError",
    "Data",
    "Evaluation",
    "Experiment",
    "FixedScale",
    "Guidance",
    "Models",
    "Objective",
    "Optimizer",
    "PseudoHuber",
    "ReferenceSampling",
    "RewardEntry",
    "Rewards",
    "RunningScale",
    "Runtime",
    "Section",
    "SquaredL2",
    "TimestepRange",
    "Tracking",
    "Training",
    "flatten",
    "load",
    "to_yaml",
]
