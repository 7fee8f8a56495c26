"""What came out of a sweep: every trial with its outcome, the Pareto front, and the run to take."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray.tune

from slingstone import tracking
from slingstone.config import Experiment, load, to_yaml
from slingstone.driver.launch import RunFailed
from slingstone.sweep.chart import draw
from slingstone.sweep.importance import importances
from slingstone.sweep.table import markdown
from slingstone.sweep.trial import reason_file, trial_name
from slingstone.sweep.trials import Plan, assignments

UNFINISHED = ("PENDING", "RUNNING", "PAUSED")


def tune_directory(plan: Plan) -> Path:
    """Return where Tune keeps the state of its trials."""
    return plan.directory / "tune"


def collect(plan: Plan, parent: tracking.Run) -> dict[str, Any]:
    """Gather the trials; write the table, the picture and the recommended run; return the summary.

    Raises:
        KeyboardInterrupt: trials are left, since the user stopped the sweep.
        launch.RunFailed: every trial failed.
    """
    analysis = ray.tune.ExperimentAnalysis(str(tune_directory(plan)))
    found = list(analysis.trials or ())
    if len(found) < plan.num_trials or any(trial.status in UNFINISHED for trial in found):
        raise KeyboardInterrupt
    trials = [_row(plan, trial) for trial in found]
    for row in trials:
        _close(row, parent)
    complete = [row for row in trials if row["outcome"] == "complete"]
    if not complete:
        raise RunFailed(f"no trial came to its end, the first: {trials[0]['outcome']}, {trials[0]['reason']}")
    for row in trials:
        row["pareto"] = row in front(plan, complete)
    best = recommended(plan, complete)
    summary = {
        "name": plan.sweep.name,
        "mlflow_uri": parent.uri,
        "mlflow_run_id": parent.run_id,
        "trials": trials,
        "importances": importances(plan.sweep, complete),
        "recommended": best["name"],
    }
    _write(plan, summary, complete, best, parent)
    return summary


def front(plan: Plan, complete: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the trials that no other beats in one objective without losing in another."""

    def scores(row: dict[str, Any]) -> list[float]:
        return [row["metrics"][entry.metric] * (1 if entry.mode == "max" else -1) for entry in plan.sweep.objectives]

    def beaten(row: dict[str, Any]) -> bool:
        mine = scores(row)
        return any(
            all(other >= own for other, own in zip(theirs, mine, strict=True)) and theirs != mine
            for theirs in map(scores, complete)
        )

    return [row for row in complete if not beaten(row)]


def recommended(plan: Plan, complete: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the trial of the Pareto front with the best held-out signal."""
    signal = plan.sweep.signal
    best = max if signal.mode == "max" else min
    return best(front(plan, complete), key=lambda row: row["metrics"][signal.metric])


def conclude(plan: Plan, summary: dict[str, Any], say: Callable[[str], None]) -> None:
    """Show the table and where everything lies."""
    say("")
    say((plan.directory / "table.md").read_text())
    for title, name in (("picture", "pareto.png"), ("recommended", "recommended.yaml"), ("summary", "summary.json")):
        say(f"{title:<12} {plan.directory / name}")
    say(f"{'MLflow':<12} {summary['mlflow_uri']}")


def _row(plan: Plan, trial: Any) -> dict[str, Any]:
    name = trial_name(plan, trial.trial_id)
    directory = Path(plan.sweep.storage) / "align" / name
    reason = reason_file(plan, trial.trial_id)
    last = trial.last_result or {}
    outcome = "complete" if (directory / "summary.json").is_file() else "stopped early"
    if trial.status == "ERROR":
        outcome = "failed"
    why = reason.read_text() if reason.is_file() else f"{trial.status}: the trial's process died"
    return {
        "name": name,
        "values": {path: trial.config[path] for path in plan.sweep.space},
        "outcome": outcome,
        "reason": why if outcome == "failed" else "",
        "images": last.get("images", 0),
        "metrics": {key: value for key, value in last.items() if _is_metric(key, value)},
        "directory": str(directory),
    }


def _is_metric(key: str, value: Any) -> bool:
    """Tell an evaluation's number from what Tune adds to a result."""
    tune = ("time", "training_iteration", "timestamp", "iterations", "pid", "images", "done")
    return isinstance(value, float) and not key.startswith(tune)


def _close(row: dict[str, Any], parent: tracking.Run) -> None:
    """Tag a trial's MLflow run with its outcome, and end that of one which was stopped from outside."""
    path = Path(row["directory"]) / "mlflow.json"
    if not path.is_file():
        return
    run = tracking.Run(parent.uri, json.loads(path.read_text())["run_id"])
    run.tag("outcome", row["outcome"])
    if row["reason"]:
        run.tag("reason", row["reason"][:4000])
    if run.client.get_run(run.run_id).info.status == "RUNNING":
        run.end("KILLED" if row["outcome"] == "stopped early" else "FAILED")


def _write(
    plan: Plan,
    summary: dict[str, Any],
    complete: Sequence[dict[str, Any]],
    best: dict[str, Any],
    parent: tracking.Run,
) -> None:
    run: Experiment = load(plan.run_file, [*assignments(best["values"]), f"name={plan.sweep.name}-recommended"])
    (plan.directory / "recommended.yaml").write_text(to_yaml(run))
    (plan.directory / "table.md").write_text(markdown(plan.sweep, summary))
    trained = {entry.name: entry.weight for entry in plan.run.rewards.services if entry.weight > 0}
    draw(plan.sweep, trained, complete, best["name"], plan.directory / "pareto.png")
    for name in ("recommended.yaml", "table.md", "pareto.png", "sweep.yaml"):
        parent.artifact(plan.directory / name)
    signal = plan.sweep.signal.metric
    parent.metrics({f"best/{signal}": best["metrics"][signal]}, best["images"])
