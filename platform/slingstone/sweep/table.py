"""A sweep as a table for people."""

from typing import Any

from slingstone.config import Sweep
from slingstone.evaluation.ranking import rank
from slingstone.evaluation.table import markdown_table


def markdown(sweep: Sweep, summary: dict[str, Any]) -> str:
    """Return a row a trial, complete ones first, best signal first, and each path's share of the variance."""
    signal = sweep.signal

    def order(trial: dict[str, Any]) -> tuple[bool, float]:
        return trial["outcome"] != "complete", -rank(trial["metrics"].get(signal.metric), signal.mode)

    rows = [["trial", *sweep.space, *metrics_of(sweep), "images", "outcome"]]
    for trial in sorted(summary["trials"], key=order):
        values = [trial["values"][path] for path in sweep.space]
        found = [trial["metrics"].get(metric, "") for metric in metrics_of(sweep)]
        mark = " **recommended**" if trial["name"] == summary["recommended"] else " (Pareto)" * trial["pareto"]
        outcome = trial["outcome"] + (f": {trial['reason']}" if trial["reason"] else mark)
        rows.append([trial["name"], *map(as_cell, [*values, *found, trial["images"]]), outcome])
    parts = [f"# {sweep.name}", markdown_table(rows)]
    if any(trial["outcome"] == "stopped early" for trial in summary["trials"]):
        parts.append(
            "Trials stopped early show their last evaluation, a short one: it does not compare with a final one."
        )
    if summary["importances"]:
        shares = [["share of variance", *sweep.space]]
        for metric, found in summary["importances"].items():
            shares.append([metric, *(f"{found.get(path, 0):.2f}" for path in sweep.space)])
        parts += [markdown_table(shares), "By functional ANOVA over the trials that came to their end."]
    return "\n\n".join(parts) + "\n"


def metrics_of(sweep: Sweep) -> list[str]:
    """Return the signal and the objectives, each once."""
    return list(dict.fromkeys([sweep.signal.metric, *(entry.metric for entry in sweep.objectives)]))


def as_cell(value: Any) -> str:
    """Return a value short enough for a line."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
