"""What the driver hands to every rank. Light, so that neither driver nor controller imports the networks."""

from dataclasses import dataclass
from typing import Any

from slingstone.config import Experiment, Rewards


@dataclass(frozen=True)
class Assignment:
    """One run, as its ranks need to know it.

    Attributes:
        experiment: its paths are absolute.
        directory: where the run writes; all nodes see it.
        board: handle of the actor that shows lines to the user.
        served: the rewards as they are served for this run; by default as they are configured.
    """

    experiment: Experiment
    directory: str
    mlflow_uri: str
    mlflow_run_id: str
    board: Any
    served: Rewards | None = None
