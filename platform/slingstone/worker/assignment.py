"""What the driver hands to every rank. Light, so that neither driver nor controller imports the networks."""

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from slingstone.config import Rewards, TrainingJob

Job_co = TypeVar("Job_co", bound=TrainingJob, covariant=True)


@dataclass(frozen=True)
class Assignment(Generic[Job_co]):
    """One run, as its ranks need to know it.

    Attributes:
        experiment: its paths are absolute.
        directory: where the run writes; all nodes see it.
        board: handle of the actor that shows lines to the user.
        served: the rewards as they are served for this run; by default as they are configured.
    """

    experiment: Job_co
    directory: str
    mlflow_uri: str
    mlflow_run_id: str
    board: Any
    served: Rewards | None = None
