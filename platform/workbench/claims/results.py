"""What the finished runs found, cell by cell: numbers over seeds, and arms at equal trained reward."""

import json
import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from slingstone.config import Experiment
from slingstone.evaluation.table import numbers
from workbench.claims.plan import Cell, Plan, Study

TRAINED = "trained reward"
"""The sum of rewards that the generator was trained for, weighted as in training."""
SHARES = (1 / 3, 2 / 3, 1.0)
"""Where in the common range of trained rewards the arms are compared."""

Curve = Sequence[tuple[float, float]]
"""Points (trained reward, another number) of one arm and one seed."""
BySeed = Mapping[int, float]
"""A number of one arm by its seed."""


class Mean(NamedTuple):
    """Mean and standard error over seeds; the error is None for a single one."""

    mean: float
    error: float | None


def mean_of(values: Collection[float]) -> Mean | None:
    """Return mean and standard error, None if there is nothing."""
    if not values:
        return None
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return Mean(statistics.fmean(values), error)


def targets(curves: Sequence[Curve]) -> tuple[float, ...]:
    """Return trained rewards that every curve reaches without extrapolation; none if they have no range in common."""
    if not curves or any(len(curve) < 2 for curve in curves):
        return ()
    low = max(min(x for x, _ in curve) for curve in curves)
    high = min(max(x for x, _ in curve) for curve in curves)
    return tuple(low + share * (high - low) for share in SHARES) if high > low else ()


def at(curve: Curve, x: float) -> float:
    """Return a curve's value at `x`, linear between the neighbours in trained reward."""
    known, values = zip(*sorted(curve), strict=True)
    if not known[0] <= x <= known[-1]:
        raise ValueError(f"{x} is not between {known[0]} and {known[-1]}")
    return float(np.interp(x, known, values))


def matched(arms: Mapping[str, Mapping[int, Curve]], x: float) -> dict[str, dict[int, float]]:
    """Return every arm's value at the same trained reward, seed by seed."""
    return {name: {seed: at(curve, x) for seed, curve in curves.items()} for name, curves in arms.items()}


def differences(arms: Mapping[str, BySeed]) -> dict[str, Mean | None]:
    """Return what every further arm has more than the first, over their common seeds; what both share cancels."""
    (_, first), *others = arms.items()
    return {name: mean_of([found[seed] - first[seed] for seed in found if seed in first]) for name, found in others}


@dataclass(frozen=True)
class Results:
    """All that is known so far: the evaluations of each finished run, by its name and theirs, and why others failed."""

    plan: Plan
    found: Mapping[str, Mapping[str, Mapping[str, float]]]
    failed: Mapping[str, str]

    @property
    def metrics(self) -> tuple[str, ...]:
        """The numbers to show."""
        return (TRAINED, *self.plan.claims.metrics)

    def cells(self, study: Study) -> list[Cell]:
        """Return the cells of a study."""
        return [cell for cell in self.plan.cells if cell.study == study.name]

    def groups(self, study: Study) -> dict[str, list[Cell]]:
        """Return the cells of a study by what tables call an arm with its values, seeds together, in order."""
        groups: dict[str, list[Cell]] = {}
        for cell in self.cells(study):
            values = ", ".join(f"{path.rpartition('.')[2]} {text}" for path, text in cell.values)
            groups.setdefault(f"{cell.arm} ({values})" if values else cell.arm, []).append(cell)
        return groups

    def by_seed(self, cells: Sequence[Cell], metric: str, evaluation: str = "aligned") -> dict[int, float]:
        """Return a number of the cells that have it, by their seeds."""
        found = [(cell.seed, self.found.get(cell.run, {}).get(evaluation, {})) for cell in cells]
        return {seed: values[metric] for seed, values in found if metric in values}

    def mean(self, cells: Sequence[Cell], metric: str, evaluation: str = "aligned") -> Mean | None:
        """Return a number over the seeds that have it."""
        return mean_of(self.by_seed(cells, metric, evaluation).values())

    def curves(self, study: Study, metric: str) -> dict[str, dict[int, Curve]]:
        """Return each arm's curves of a number over the trained reward, by seed."""
        arms: dict[str, dict[int, Curve]] = {}
        for cell in self.cells(study):
            found = self.found.get(cell.run, {}).get("aligned", {})
            if metric in found:
                seeds = arms.setdefault(cell.arm, {})
                seeds[cell.seed] = (*seeds.get(cell.seed, ()), (found[TRAINED], found[metric]))
        return arms

    def rivals(self, study: Study) -> list[str]:
        """Return the names of the study's many-step evaluations."""
        names = {name for cell in self.cells(study) for name in self.found.get(cell.run, {})}
        return sorted(name for name in names if name.startswith("reference_"))


def read(plan: Plan, failed: Mapping[str, str]) -> Results:
    """Read what the runs have left under the storage."""
    found = {}
    for name, experiment in plan.runs.items():
        path = plan.run_directory(name) / "summary.json"
        if path.is_file():
            summary = json.loads(path.read_text())
            evaluations = [key for key, value in summary.items() if isinstance(value, dict) and "rewards" in value]
            found[name] = {key: _numbers(experiment, summary[key]) for key in evaluations}
    return Results(plan, found, failed)


def _numbers(experiment: Experiment, evaluation: Mapping[str, Any]) -> dict[str, float]:
    """Return an evaluation's numbers, with the sum of the rewards that are weighed in training."""
    trained = sum(entry.weight * evaluation["rewards"][entry.name] for entry in experiment.rewards.services)
    return {**numbers(evaluation), TRAINED: float(trained)}
