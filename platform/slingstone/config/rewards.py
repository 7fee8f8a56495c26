"""Which rewards judge the pictures, who runs them, and how they are combined."""

from itertools import product
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from reward_services.spec import RewardSpec
from slingstone.config.paths import PathText
from slingstone.config.tree import Section


class FixedScale(Section):
    """`(score - mean) / std` with numbers known beforehand, such as those of the reference's pictures."""

    kind: Literal["fixed"]
    mean: float = 0.0
    """Subtracted from the logged score; it has no gradient."""
    std: PositiveFloat
    """Divides score and gradient."""


class RunningScale(Section):
    """`(score - mean) / std` of the scores lately seen on all workers; part of the checkpoint."""

    kind: Literal["running"]
    half_life_images: PositiveFloat = 10_000.0
    """Images after which a score counts half."""


class RewardEntry(RewardSpec):
    """A reward service and its part in this run."""

    checkpoint: PathText
    """Directory, file or hub id."""
    tokenizer: PathText | None = None
    """Directory or hub id; by default beside the weights, else the published one."""
    upstream_environment: PathText | None = None
    """Directory of the upstream package's environment on every node; by default Ray's pip makes one."""
    weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """Weight in the sum of rewards; 0 holds the reward out: evaluated, never trained on."""
    normalisation: Annotated[FixedScale | RunningScale, Field(discriminator="kind")] | None = None
    """Brings the score to a common scale before it is weighed; null takes it as it is."""
    preprocess_at: Literal["client", "service"] = "service"
    """Who resizes the pictures: `client` sends them, and gets their gradient, at the model's size; same results."""

    application: Annotated[str, Field(min_length=1)] | None = None
    """Serve application that judges for this run, if it is not `reward-<name>`; a run names those that it manages."""

    @property
    def served_as(self) -> str:
        """Name of the Serve application; over HTTP, its route."""
        return self.application or self.app_name

    @property
    def spec(self) -> RewardSpec:
        """The service alone, as it is deployed."""
        return RewardSpec(**{name: getattr(self, name) for name in RewardSpec.model_fields})


class Rewards(Section):
    """Which rewards judge the pictures, and who runs them."""

    lifecycle: Literal["managed", "external"] = "managed"
    """`managed` deploys services of the run's own and deletes them at the end; `external` expects them to run already,
    and refuses those that are other rewards."""
    backend: Literal["serve", "in_process", "http"] = "serve"
    """`in_process` loads the rewards into each trainer worker: no service and no overlap; for small models.
    `http` asks services outside this cluster, with the bearer token of the environment's REWARD_SERVICES_TOKEN."""
    url: Annotated[str, Field(pattern=r"^https?://[^/\s]+(/[^\s?#]*)?$")] | None = None
    """Of the HTTP proxy; a reward's route under it is `/reward-<name>`. Only https hides the token from listeners."""
    on_failure: Literal["stop", "drop"] = "stop"
    """What a reward that cannot be had costs: `stop` ends the run with its name; `drop` leaves it out of this step, on
    all workers together, and counts it in the metric `dropped/<name>`. A request that is refused always stops."""
    drops_in_a_row: PositiveInt = 10
    """So many steps in a row without the same reward end the run, where `on_failure: drop`."""
    services: tuple[RewardEntry, ...] = ()
    """The rewards. Overrides reach one by its name: `rewards.services.pickscore.weight=2`."""

    @property
    def shared(self) -> dict[str, Any]:
        """Values by key in which runs must agree that ask the same services; in process each run has its own."""
        found: dict[str, Any] = {"rewards.backend": self.backend}
        if self.backend == "in_process":
            return found
        for entry, field in product(self.services, RewardSpec.model_fields.keys() - {"deadline_s"}):
            found[f"rewards.services.{entry.name}.{field}"] = getattr(entry, field)
        return found | {"rewards.url": self.url}

    def differing(self, other: "Rewards") -> list[str]:
        """Return the keys that keep two runs from sharing one service of each reward."""
        mine, theirs = self.shared, other.shared
        return sorted(key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key))
