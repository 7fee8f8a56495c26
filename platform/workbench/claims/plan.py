"""Studies of claims: their settings, and the runs that they need, each once. Imports neither torch nor ray."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PositiveInt, model_validator
from pydantic_core import PydanticCustomError

from slingstone.compare.contents import digest
from slingstone.config import Experiment, flatten, load, paths
from slingstone.config.contradictions import Contradiction
from slingstone.config.experiment import ALWAYS_MEASURED, measured
from slingstone.config.paths import PathText, Storage
from slingstone.config.tree import Name, Section
from slingstone.driver import preflight


class Arm(Section):
    """One way of training."""

    name: Name
    """What tables call it."""
    overrides: tuple[str, ...] = ()
    """`dotted.path=value`: in what it differs from the other arms."""
    vary: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = Field(default_factory=dict)
    """Dotted paths and the values that each takes in turn; of several paths, every combination."""


class Study(Section):
    """One question."""

    name: Name
    """Of its pictures."""
    title: Annotated[str, Field(min_length=1)]
    """Heading of its section."""
    claim: str = ""
    """What is claimed, and where."""
    arms: Annotated[tuple[Arm, ...], Field(min_length=1)]
    """What is compared; arms that come to the same run share it."""
    matched: bool = False
    """Whether arms are compared at equal trained reward, by linear interpolation between the values of `vary`."""
    discussion: str = ""
    """What people conclude from the numbers; stands below them."""


class Claims(Section):
    """All studies, complete and nameable."""

    name: Name
    """Results lie under `<storage>/claims/<name>`, the runs under `<storage>/align/<name>-<digest>`; the same name goes
    on where it was interrupted."""
    storage: Storage = "outputs"
    """Directory under which everything is written; all nodes must see it."""
    run: PathText
    """YAML file of the run that all arms vary, such as configs/align/scenes.yaml."""
    overrides: tuple[str, ...] = ()
    """`dotted.path=value` for all arms."""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0, 1, 2)
    """Each becomes `seed` and `evaluation.seed` of every arm; standard errors are over them."""
    metrics: Annotated[tuple[str, ...], Field(min_length=1)] = ("diversity",)
    """Numbers of the final evaluation that tables and pictures show beside the trained reward."""
    studies: Annotated[tuple[Study, ...], Field(min_length=1)]
    """The questions."""
    sheet_prompts: PositiveInt = 6
    """Rows of the sheets of pictures; at most `evaluation.grid_prompts`."""
    max_concurrent: PositiveInt | None = None
    """Most runs at a time; null is as many as the cluster holds."""

    @model_validator(mode="after")
    def _agree(self) -> "Claims":
        found = list(_contradictions(self))
        if found:
            raise PydanticCustomError("contradictions", "sections contradict each other", {"found": found})
        return self


def _contradictions(claims: Claims) -> Iterator[Contradiction]:
    for path, entries in (("studies", claims.studies), *((f"studies.{s.name}.arms", s.arms) for s in claims.studies)):
        names = [entry.name for entry in entries]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield Contradiction(path, name, "is the name of two; rename one")
    for study in claims.studies:
        for arm in study.arms:
            if study.matched and not any(len(values) > 1 for values in arm.vary.values()):
                remedy = "give it two values or more of objective.reward_weight"
                yield Contradiction(f"studies.{study.name}.arms.{arm.name}.vary", None, f"cannot be matched; {remedy}")


@dataclass(frozen=True)
class Cell:
    """The place of a run in a study: what it has of the arm's `vary`, as text, and which repetition it is."""

    study: str
    arm: str
    values: tuple[tuple[str, str], ...]
    seed: int
    run: str

    @property
    def group(self) -> str:
        """What tables call the arm with its values, seeds together."""
        values = ", ".join(f"{path.rpartition('.')[2]} {text}" for path, text in self.values)
        return f"{self.arm} ({values})" if values else self.arm


@dataclass(frozen=True)
class Plan:
    """The studies, their storage absolute, with all cells in their order, and the distinct runs by name."""

    claims: Claims
    cells: tuple[Cell, ...]
    runs: Mapping[str, Experiment]

    @property
    def directory(self) -> Path:
        """Where the results lie."""
        return Path(self.claims.storage) / "claims" / self.claims.name

    def run_directory(self, name: str) -> Path:
        """Return where a run writes."""
        return Path(self.claims.storage) / "align" / name


def prepare(claims: Claims) -> Plan:
    """Resolve and check every run.

    Raises:
        ValueError: naming what is wrong with one.
    """
    found = paths.resolved(claims)
    source, claims = found.run, claims.model_copy(update={"storage": found.storage})
    cells: list[Cell] = []
    runs: dict[str, Experiment] = {}
    for study in claims.studies:
        for arm in study.arms:
            for values, seed in product(product(*arm.vary.values()), claims.seeds):
                # As JSON, which YAML reads back.
                varied = tuple(zip(arm.vary, map(json.dumps, values), strict=True))
                own = [f"seed={seed}", f"evaluation.seed={seed}", f"storage={claims.storage}"]
                overrides = [*claims.overrides, *arm.overrides, *(f"{path}={text}" for path, text in varied), *own]
                experiment = load(source, overrides)
                name = f"{claims.name}-{_digest(experiment)}"
                if name not in runs:
                    runs[name] = preflight.prepare(experiment.model_copy(update={"name": name}))
                    _check_metrics(claims, runs[name])
                    _share_rewards(f"studies.{study.name}.arms.{arm.name}", next(iter(runs.values())), runs[name])
                cells.append(Cell(study.name, arm.name, varied, seed, name))
    return Plan(claims, tuple(cells), runs)


def _digest(experiment: Experiment) -> str:
    """Return what is the same for runs that compute the same; names and places do not count."""
    told = {key: value for key, value in flatten(experiment).items() if key not in ("name", "storage")}
    return digest(told)


def _share_rewards(field: str, first: Experiment, run: Experiment) -> None:
    for key in first.rewards.differing(run.rewards):
        raise ValueError(
            f"{field}: all runs share one service of each reward, so that {key} cannot differ; make claims of their own"
            " for each value, or give every run its own rewards with rewards.backend=in_process in overrides"
        )


def _check_metrics(claims: Claims, experiment: Experiment) -> None:
    for place, metric in enumerate(claims.metrics):
        if not measured(experiment, metric):
            known = ", ".join([*(f"rewards/{entry.name}" for entry in experiment.rewards.services), *ALWAYS_MEASURED])
            raise ValueError(f"metrics.{place} = {metric!r}: is in no evaluation; they have {known}")
