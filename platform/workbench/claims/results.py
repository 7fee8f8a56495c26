"""What the finished runs found, cell by cell."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slingstone.config import Experiment
from slingstone.evaluation.table import numbers
from slingstone.prompts.files import read_prompts
from workbench.claims.cells import Cell, Plan
from workbench.claims.matching import Curve, Mean, mean_of
from workbench.claims.settings import Study

TRAINED = "trained reward"
"""The sum of rewards that the generator was trained for, weighted as in training."""


@dataclass(frozen=True)
class Results:
    """All that is known so far.

    Attributes:
        plan: the studies.
        found: the final evaluation of each finished run, by its name.
        summaries: their whole summaries.
        failed: why runs failed, by name.
    """

    plan: Plan
    found: Mapping[str, Mapping[str, float]]
    summaries: Mapping[str, Mapping[str, Any]]
    failed: Mapping[str, str]

    @property
    def metrics(self) -> tuple[str, ...]:
        """The numbers to show."""
        return (TRAINED, *self.plan.claims.metrics)

    def groups(self, study: Study) -> dict[str, list[Cell]]:
        """Return the cells of a study by arm and values, seeds together, in order."""
        groups: dict[str, list[Cell]] = {}
        for cell in self.plan.cells:
            if cell.study == study.name:
                groups.setdefault(label(cell), []).append(cell)
        return groups

    def by_seed(self, cells: Sequence[Cell], metric: str) -> dict[int, float]:
        """Return a number of the cells that have it, by their seeds."""
        known = [cell for cell in cells if metric in self.found.get(cell.run, {})]
        return {cell.seed: self.found[cell.run][metric] for cell in known}

    def mean(self, cells: Sequence[Cell], metric: str) -> Mean | None:
        """Return a number over the seeds that have it."""
        return mean_of(self.by_seed(cells, metric).values())

    def curves(self, study: Study, metric: str) -> dict[str, dict[int, Curve]]:
        """Return each arm's curves of a number over the trained reward, by seed."""
        arms: dict[str, dict[int, Curve]] = {}
        for cell in self.plan.cells:
            if cell.study == study.name and metric in (found := self.found.get(cell.run, {})):
                seeds = arms.setdefault(cell.arm, {})
                seeds[cell.seed] = (*seeds.get(cell.seed, ()), (found[TRAINED], found[metric]))
        return arms

    def other(self, study: Study, name: str) -> dict[str, Mean]:
        """Return the numbers of another evaluation of the study's runs, `init` or the rival's, a run a seed."""
        by_seed: dict[int, dict[str, float]] = {}
        for cell in self.plan.cells:
            summary = self.summaries.get(cell.run, {})
            if cell.study == study.name and name in summary:
                by_seed[cell.seed] = _numbers(self.plan.runs[cell.run], summary[name])
        names = [*self.metrics, "seconds_per_image", "network_evaluations"]
        means = {metric: mean_of([f[metric] for f in by_seed.values() if metric in f]) for metric in names}
        return {metric: mean for metric, mean in means.items() if mean is not None}

    def prompts(self, run: str) -> tuple[str, ...]:
        """Return the prompts of a run's evaluation, in the order of its kept pictures."""
        settings = self.plan.runs[run].evaluation
        return read_prompts(settings.prompts, settings.column)

    def rivals(self, study: Study) -> list[str]:
        """Return the names of the study's many-step evaluations."""
        runs = {cell.run for cell in self.plan.cells if cell.study == study.name}
        return sorted({name for run in runs for name in self.summaries.get(run, {}) if name.startswith("reference_")})


def label(cell: Cell) -> str:
    """Return what tables call an arm with its values."""
    values = ", ".join(f"{path.rpartition('.')[2]} {text}" for path, text in cell.values)
    return f"{cell.arm} ({values})" if values else cell.arm


def read(plan: Plan, failed: Mapping[str, str]) -> Results:
    """Read what the runs have left under the storage."""
    summaries = {}
    for name in plan.runs:
        path = plan.run_directory(name) / "summary.json"
        if path.is_file():
            summaries[name] = json.loads(path.read_text())
    found = {name: _numbers(plan.runs[name], summary["aligned"]) for name, summary in summaries.items()}
    return Results(plan, found, summaries, failed)


def _numbers(experiment: Experiment, summary: Mapping[str, Any]) -> dict[str, float]:
    """Return an evaluation's numbers, with the sum of the rewards that are weighed in training."""
    weights = {entry.name: entry.weight for entry in experiment.rewards.services}
    trained = sum(weight * summary["rewards"][name] for name, weight in weights.items())
    return {**numbers(summary), TRAINED: float(trained)}
