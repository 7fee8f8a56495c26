"""A sweep: one run, the dotted paths that vary, and what makes one trial better than another."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, model_validator

from slingstone.config.contradictions import Contradiction, refuse
from slingstone.config.paths import PathText, Storage
from slingstone.config.tree import Metric, Name, Section


class Uniform(Section):
    """Any number between two."""

    kind: Literal["uniform"]
    low: float
    """Smallest value."""
    high: float
    """Largest value."""
    log: bool = False
    """Whether orders of magnitude are equally likely, rather than values."""


class Choice(Section):
    """One of the listed values: numbers, words, or whole sections such as `{kind: kl}`."""

    kind: Literal["choice"]
    values: Annotated[tuple[Any, ...], Field(min_length=1)]
    """The values, as they would stand in the run's YAML."""


Range = Annotated[Uniform | Choice, Field(discriminator="kind")]


class OptunaSearch(Section):
    """Tree-structured Parzen estimator, over all objectives at once."""

    kind: Literal["optuna"]
    trials: PositiveInt
    """How many are tried."""
    startup_trials: PositiveInt = 6
    """So many are drawn at random before the search learns from results."""
    seed: int = 0
    """Of the search, not of the runs."""


class RandomSearch(Section):
    """Independent draws."""

    kind: Literal["random"]
    trials: PositiveInt
    """How many are tried."""
    seed: int = 0
    """Of the search, not of the runs."""


class GridSearch(Section):
    """Every combination of choices."""

    kind: Literal["grid"]


class EarlyStopping(Section):
    """ASHA: at each rung, the trials that are worse on the signal are stopped."""

    grace_images: PositiveInt
    """No trial is stopped before."""
    reduction_factor: Annotated[float, Field(gt=1)] = 3.0
    """One in so many goes on from each rung; rungs grow by the same factor."""


class Sweep(Section):
    """One sweep, complete and nameable."""

    name: Name
    """The sweep writes under `<storage>/sweep/<name>`, its trials under `<storage>/align/<name>-<trial>`; the same name
    continues where an interrupted sweep was."""
    storage: Storage = "outputs"
    """Directory under which everything is written; all nodes must see it."""
    run: PathText
    """YAML file of the run that is varied, such as configs/align/scenes.yaml."""
    overrides: tuple[str, ...] = ()
    """`dotted.path=value` for all trials and for the recommended run."""
    trial_overrides: tuple[str, ...] = ()
    """`dotted.path=value` for the trials alone: what makes them shorter."""
    space: Annotated[dict[str, Range], Field(min_length=1)]
    """Dotted paths of the run, and what each may be."""
    search: Annotated[OptunaSearch | RandomSearch | GridSearch, Field(discriminator="kind")]
    """How values are chosen."""
    objectives: Annotated[tuple[Metric, ...], Field(min_length=1)]
    """What trials are compared by; several make a Pareto front."""
    signal: Metric
    """Held-out number that stops trials early and picks the recommended one: none that is trained on."""
    early_stopping: EarlyStopping | None = None
    """Null lets every trial come to its end."""
    max_concurrent: PositiveInt | None = None
    """Most trials at a time; null is as many as the cluster holds."""

    @model_validator(mode="after")
    def _agree(self) -> "Sweep":
        refuse(_contradictions(self))
        return self


def _contradictions(sweep: Sweep) -> Iterator[Contradiction]:
    for path, values in sweep.space.items():
        if not isinstance(values, Uniform):
            continue
        if values.low >= values.high:
            yield Contradiction(f"space.{path}.low", values.low, f"is not below high = {values.high}; swap them")
        if values.log and values.low <= 0:
            yield Contradiction(f"space.{path}.low", values.low, "has no logarithm; make it positive, or log false")
        if sweep.search.kind == "grid":
            yield Contradiction(f"space.{path}.kind", values.kind, "cannot be laid on a grid; list a choice of values")
