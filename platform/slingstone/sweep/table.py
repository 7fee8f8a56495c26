"""A sweep as a table for people."""

from typing import Any

from slingstone.config import Sweep


def markdown(sweep: Sweep, summary: dict[str, Any]) -> str:
    """Return a row a trial, complete ones first, best signal first, and each path's share of the variance."""
    signal = sweep.signal
    metrics = list(dict.fromkeys([signal.metric, *(entry.metric for entry in sweep.objectives)]))
    sign = -1 if signal.mode == "max" else 1

    def order(trial: dict[str, Any]) -> tuple[bool, bool, float]:
        found = trial["metrics"].get(signal.metric)
        return trial["outcome"] != "complete", found is None, 0.0 if found is None else sign * found

    rows = [["trial", *sweep.space, *metrics, "images", "outcome"]]
    for trial in sorted(summary["trials"], key=order):
        mark = " **recommended**" if trial["name"] == summary["recommended"] else " (Pareto)" * trial["pareto"]
        outcome = trial["outcome"] + (f": {trial['reason']}" if trial["reason"] else mark)
        rows.append(
            [
                trial["name"],
                *(_number(trial["values"][path]) for path in sweep.space),
                *(_number(trial["metrics"].get(metric, "")) for metric in metrics),
                str(trial["images"]),
                outcome.replace("|", "/"),
            ]
        )
    parts = [f"# {sweep.name}", _table(rows)]
    if any(trial["outcome"] == "stopped early" for trial in summary["trials"]):
        parts.append(
            "Trials stopped early show their last evaluation, a short one: it does not compare with a final one."
        )
    if summary["importances"]:
        shares = [["share of variance", *sweep.space]]
        shares += [
            [metric, *(f"{found.get(path, 0):.2f}" for path in sweep.space)]
            for metric, found in summary["importances"].items()
        ]
        note = "By functional ANOVA over the trials that came to their end."
        parts += [_table(shares), note]
    return "\n\n".join(parts) + "\n"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
