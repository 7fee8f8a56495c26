"""Which runs the studies need, each once, checked before anything is held. Imports neither torch nor ray."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from slingstone.config import Experiment, flatten, load, paths, to_yaml
from slingstone.config.experiment import ALWAYS_MEASURED, measured
from slingstone.driver import preflight
from workbench.claims.settings import Arm, Claims


@dataclass(frozen=True)
class Cell:
    """One run in its place in a study.

    Attributes:
        study: name of the study.
        arm: name of the arm.
        values: what it has of the arm's `vary`, as text.
        seed: which repetition.
        run: name of the run, shared by all cells that come to the same.
    """

    study: str
    arm: str
    values: tuple[tuple[str, str], ...]
    seed: int
    run: str


@dataclass(frozen=True)
class Plan:
    """The studies with their runs resolved.

    Attributes:
        claims: the configuration, its storage absolute.
        cells: all places, in the order of the studies.
        runs: the distinct runs by name.
    """

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

    def begin(self) -> None:
        """Write down what is about to run; runs that changed have other names, so that nothing is mixed."""
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "claims.yaml").write_text(to_yaml(self.claims))


def prepare(claims: Claims) -> Plan:
    """Resolve and check every run.

    Raises:
        ValueError: naming what is wrong with one.
    """
    source, storage = paths.located(claims.run), str(Path(claims.storage).resolve())
    claims = claims.model_copy(update={"storage": storage})
    cells: list[Cell] = []
    runs: dict[str, Experiment] = {}
    for study in claims.studies:
        for arm in study.arms:
            for values, seed in product(_combinations(arm), claims.seeds):
                varied = [f"{path}={text}" for path, text in values]
                own = [f"seed={seed}", f"evaluation.seed={seed}", f"storage={storage}"]
                experiment = load(source, [*claims.overrides, *arm.overrides, *varied, *own])
                name = f"{claims.name}-{_digest(experiment)}"
                if name not in runs:
                    prepared = preflight.prepare(experiment.model_copy(update={"name": name}))
                    _check_metrics(claims, prepared)
                    runs[name] = prepared
                cells.append(Cell(study.name, arm.name, values, seed, name))
    return Plan(claims, tuple(cells), runs)


def _combinations(arm: Arm) -> Iterator[tuple[tuple[str, str], ...]]:
    for values in product(*arm.vary.values()):
        yield tuple(zip(arm.vary, map(_text, values), strict=True))


def _text(value: Any) -> str:
    return json.dumps(value)  # which YAML reads back


def _digest(experiment: Experiment) -> str:
    """Return what is the same for runs that compute the same; names and places do not count."""
    told = {key: value for key, value in flatten(experiment).items() if key not in ("name", "storage")}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:10]


def _check_metrics(claims: Claims, experiment: Experiment) -> None:
    for place, metric in enumerate(claims.metrics):
        if not measured(experiment, metric):
            known = ", ".join([*(f"rewards/{entry.name}" for entry in experiment.rewards.services), *ALWAYS_MEASURED])
            raise ValueError(f"metrics.{place} = {metric!r}: is in no evaluation; they have {known}")
