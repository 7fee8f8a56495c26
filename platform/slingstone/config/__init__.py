"""A run as one frozen pydantic tree. Imports neither torch nor ray, so that a mistake shows in half a second."""

from slingstone.config.arena import Arena
from slingstone.config.comparison import Comparison
from slingstone.config.experiment import Experiment
from slingstone.config.fitting import RewardComparison, RewardFit
from slingstone.config.guard import Guard
from slingstone.config.job import TrainingJob
from slingstone.config.loading import ConfigError, flatten, kind_of, load, load_as, to_yaml
from slingstone.config.placement import Placement
from slingstone.config.recovery import Recovery
from slingstone.config.rewards import FixedScale, RewardEntry, Rewards, RunningScale
from slingstone.config.sweep import Sweep
from slingstone.config.tree import (
    ATTENTION,
    EMBEDDINGS_LIMIT,
    KL,
    Data,
    Evaluation,
    Models,
    Objective,
    Optimizer,
    PseudoHuber,
    Runtime,
    Tracking,
)
