"""A run as one frozen pydantic tree. Imports neither torch nor ray, so that a mistake shows in half a second."""

from slingstone.config.experiment import Experiment, RewardEntry, Rewards
from slingstone.config.loading import ConfigError, flatten, load, to_yaml
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
    "Guidance",
    "Models",
    "Objective",
    "Optimizer",
    "PseudoHuber",
    "ReferenceSampling",
    "RewardEntry",
    "Rewards",
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
