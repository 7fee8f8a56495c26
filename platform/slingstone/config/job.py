"""What an alignment and the fitting of a reward have in common, and driver, checkpoints and tracking go by."""

from typing import Any, ClassVar, Protocol, runtime_checkable

from slingstone.config.placement import Placement
from slingstone.config.recovery import Recovery
from slingstone.config.rewards import Rewards
from slingstone.config.tree import Runtime, Tracking


@runtime_checkable
class TrainingJob(Protocol):
    """A configuration by which Ray Train's workers train something; an `Experiment` is one."""

    job: ClassVar[str]
    """Results lie under `<storage>/<job>/<name>`."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def storage(self) -> str: ...  # noqa: D102
    @property
    def runtime(self) -> Runtime: ...  # noqa: D102
    @property
    def placement(self) -> Placement: ...  # noqa: D102
    @property
    def rewards(self) -> Rewards: ...  # noqa: D102
    @property
    def recovery(self) -> Recovery: ...  # noqa: D102
    @property
    def tracking(self) -> Tracking: ...  # noqa: D102

    def model_dump(self, *, mode: str = "python") -> dict[str, Any]: ...  # noqa: D102
