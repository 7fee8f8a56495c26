"""What the finished runs found, as one table: numbers over seeds, and arms at equal trained reward."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from slingstone.config import Experiment
from slingstone.evaluation.table import evaluations, numbers
from workbench.claims.plan import Plan, Study

Table = Any
"""A pandas DataFrame or a column of it; pyright takes what their methods return for one of many types."""
TRAINED = "trained reward"
"""The sum of rewards that the generator was trained for, weighted as in training."""
SPEED = ("network_evaluations", "seconds_per_image")
"""What a one-step generator and its many-step rivals differ in."""
LEVELS = 3
"""At so many trained rewards arms are compared, equally far apart, up to the highest in common."""


@dataclass(frozen=True)
class Results:
    """All that is known so far, and why other runs failed.

    `found` has a row a cell and evaluation: what the cell is, its `group` and the name of the `evaluation` among it,
    and the numbers to show, NaN where they are not known. `aligned` is there of every cell, in the plan's order.
    """

    plan: Plan
    found: Table
    failed: Mapping[str, str]

    @property
    def metrics(self) -> list[str]:
        """The numbers to show."""
        return [TRAINED, *self.plan.claims.metrics]

    def of(self, study: Study) -> Table:
        """Return the rows of a study."""
        return self.found[self.found["study"] == study.name]

    def aligned(self, study: Study) -> Table:
        """Return the rows of the trained generators of a study."""
        return self.of(study).query("evaluation == 'aligned'")


def by_seed(rows: Table, name: str, metrics: Sequence[str]) -> Table:
    """Return numbers by a column of names and the seed; cells that share both count once."""
    return rows.groupby([name, "seed"], sort=False)[list(metrics)].last()


def over_seeds(by_seed: Table) -> tuple[Table, Table]:
    """Return, by name, means over the seeds that have a number, and standard errors, which a single one has not."""
    names = by_seed.groupby(level=0, sort=False)
    return names.mean(), names.sem()


def differences(by_seed: Table) -> Table:
    """Return what every further name has more than the first, seed by seed; what both share cancels."""
    first = by_seed.index[0][0]
    return by_seed.drop(first, level=0).sub(by_seed.loc[first], level="seed")


def levels(trained: Table) -> Sequence[float]:
    """Return trained rewards that the curves of all arms and seeds reach; none if they have no range in common."""
    curves = trained.groupby(level=["arm", "seed"])
    low, high = curves.min().max(), curves.max().min()
    return np.linspace(low, high, 1 + LEVELS)[1:].tolist() if curves.count().min() > 1 and low < high else []


def matched(points: Table, level: float) -> Table:
    """Return all columns where `trained reward` is at a level, by arm and seed, linear between its neighbours."""
    return points.groupby(level=["arm", "seed"], sort=False).apply(_at, level)


def _at(curve: Table, level: float) -> Table:
    curve = curve.sort_values(TRAINED)
    low, *_, high = curve[TRAINED]
    if not low <= level <= high:
        raise ValueError(f"{level} is not between {low} and {high}")
    return curve.apply(lambda column: np.interp(level, curve[TRAINED], column))


def read(plan: Plan, failed: Mapping[str, str]) -> Results:
    """Read what the runs have left under the storage."""
    found = {name: _evaluations(run, plan.run_directory(name) / "summary.json") for name, run in plan.runs.items()}
    rows: Table = pd.DataFrame(
        {**values, **vars(cell), "group": cell.group, "evaluation": evaluation}
        for cell in plan.cells
        for evaluation, values in found[cell.run].items()
    )
    identity = ["study", "arm", "group", "seed", "run", "evaluation"]
    shown = dict.fromkeys([TRAINED, *plan.claims.metrics, *SPEED])
    return Results(plan, rows.reindex(columns=[*identity, *shown]), failed)


def _evaluations(experiment: Experiment, summary: Path) -> dict[str, dict[str, float]]:
    """Return each evaluation's numbers, with the sum of the rewards that are weighed in training."""
    found: dict[str, dict[str, float]] = {"aligned": {}}
    for name, value in evaluations(json.loads(summary.read_text())).items() if summary.is_file() else ():
        trained = sum(entry.weight * value["rewards"][entry.name] for entry in experiment.rewards.services)
        found[name] = numbers(value) | {TRAINED: float(trained)}
    return found
