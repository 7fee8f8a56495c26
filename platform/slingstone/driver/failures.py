"""Which failures of a training run are worth another start."""

from collections.abc import Callable
from typing import Any

from ray.exceptions import RayActorError, RayError
from ray.train.v2._internal.exceptions import RayTrainError, UserExceptionWithTraceback
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

from reward_services.protocol import RewardError
from slingstone.checkpoints.saving import SaveFailed
from slingstone.step.panel import RewardsLost

FROM_A_LOST_PEER = (RuntimeError, OSError, RayError, RayTrainError)
"""What a worker raises when another one, or something it talks to, dies, and Ray's own words for one that is gone."""
DELIBERATE = (RewardsLost, RewardError, SaveFailed)
"""What is raised on purpose, to stop the run."""


class RunFailed(RuntimeError):
    """A run that started and did not come to its end; the message is for the user.

    Attributes:
        mistake: whether it would fail again in the same way.
    """

    def __init__(self, message: str, mistake: bool = False) -> None:
        super().__init__(message)
        self.mistake = mistake


def is_mistake(error: TrainingFailedError | RayActorError) -> bool:
    """Return whether a worker named something that another start would not mend."""
    return any(_is_deliberate(failure) for failure in _failures(error))


def cause(error: TrainingFailedError | RayActorError) -> str:
    """Return in a line what went wrong: what a worker named, else what the first one to fail said."""
    failures = _failures(error)
    told = next(filter(_is_deliberate, failures), failures[0] if failures else error)
    lines = str(told).strip().splitlines() or [type(error).__name__]
    return lines[-1] if lines[0].startswith("Traceback") else lines[0]


def surviving(
    attempt: Callable[[], dict[str, Any]],
    reached: Callable[[], str | None],
    max_failures: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Return what an attempt returns, trying again after failures that are no mistakes.

    Args:
        attempt: runs to the end from the newest checkpoint.
        reached: returns the name of that checkpoint.
        max_failures: so many are survived without a new checkpoint in between.
        say: shows a line to the user.

    Raises:
        RunFailed: a mistake, or one failure too many.
    """
    failures, before = 0, reached()
    while True:
        try:
            return attempt()
        except RunFailed as error:
            now = reached()
            failures = failures + 1 if now == before else 1
            before = now
            if error.mistake or failures > max_failures:
                raise
            where = "the beginning" if now is None else f"checkpoint {now}"
            say(f"{str(error).splitlines()[0]}; starting again from {where} ({failures} of {max_failures})")


def _failures(error: Exception) -> list[Any]:
    return list(error.worker_failures.values()) if isinstance(error, WorkerGroupError) else []


def _is_deliberate(failure: Any) -> bool:
    # Ray hands over what the worker raised, in a wrapper of its own or bare; there is no other way into the wrapper.
    raised = failure._base_exc if isinstance(failure, UserExceptionWithTraceback) else failure
    return isinstance(raised, DELIBERATE) or not isinstance(raised, FROM_A_LOST_PEER)
