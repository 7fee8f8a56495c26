"""What came out of a sweep: every trial with its outcome, the Pareto front, and the run to take."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray.tune

from slingstone import atomic, tracking
from slingstone.config import to_yaml
from slingstone.driver.launch import RunFailed
from slingstone.sweep.analysis import importances, pareto_front, recommended
from slingstone.sweep.chart import draw
from slingstone.sweep.table import markdown
from slingstone.sweep.trials import PreparedSweep


def collect(prepared: PreparedSweep, parent: tracking.Run) -> dict[str, Any]:
    """Gather the trials; write the table, the picture and the recommended experiment; return the summary.

    Raises:
        KeyboardInterrupt: trials are left, since the user stopped the sweep.
        launch.RunFailed: every trial failed.
    """
    found = list(ray.tune.ExperimentAnalysis(str(prepared.tune_directory)).trials or ())
    if len(found) < prepared.num_trials or not all(trial.is_finished() for trial in found):
        raise KeyboardInterrupt
    trials = [_row(prepared, trial) for trial in found]
    for row in trials:
        _close(row, parent)
    complete = [row for row in trials if row["outcome"] == "complete"]
    if not complete:
        raise RunFailed(f"no trial came to its end, the first: {trials[0]['outcome']}, {trials[0]['reason']}")
    front = pareto_front(prepared.sweep, complete)
    for row in trials:
        row["pareto"] = row in front
    best = recommended(prepared.sweep, complete)
    summary = {
        "name": prepared.sweep.name,
        "mlflow_uri": parent.uri,
        "mlflow_run_id": parent.run_id,
        "trials": trials,
        "importances": importances(prepared.sweep, complete),
        "recommended": best["name"],
    }
    _write(prepared, summary, complete, best, parent)
    return summary


def conclude(prepared: PreparedSweep, summary: dict[str, Any], say: Callable[[str], None]) -> None:
    """Show the table and where everything lies."""
    say("")
    say((prepared.directory / "table.md").read_text())
    for title, name in (("picture", "pareto.png"), ("recommended", "recommended.yaml"), ("summary", "summary.json")):
        say(f"{title:<12} {prepared.directory / name}")
    say(f"{'MLflow':<12} {summary['mlflow_uri']}")


def _row(prepared: PreparedSweep, trial: Any) -> dict[str, Any]:
    name, last = prepared.trial_name(trial.trial_id), trial.last_result or {}
    directory = Path(prepared.sweep.storage) / "align" / name
    outcome, reason = "complete" if (directory / "summary.json").is_file() else "stopped early", ""
    if trial.status == "ERROR":
        told = prepared.reason_file(trial.trial_id)
        outcome, reason = "failed", told.read_text() if told.is_file() else "ERROR: the trial's process died"
    return {
        "name": name,
        "values": {path: trial.config[path] for path in prepared.sweep.space},
        "outcome": outcome,
        "reason": reason,
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
    if (saved := atomic.read_json(Path(row["directory"]) / "mlflow.json")) is None:
        return
    run = tracking.Run(parent.uri, saved["run_id"])
    run.tag("outcome", row["outcome"])
    if row["reason"]:
        run.tag("reason", row["reason"][:4000])
    if run.client.get_run(run.run_id).info.status == "RUNNING":
        run.end("KILLED" if row["outcome"] == "stopped early" else "FAILED")


def _write(
    prepared: PreparedSweep, summary: dict[str, Any], complete: Sequence[Any], best: Any, parent: tracking.Run
) -> None:
    sweep, directory = prepared.sweep, prepared.directory
    atomic.write_text(directory / "recommended.yaml", to_yaml(prepared.recommended(best["values"])))
    atomic.write_text(directory / "table.md", markdown(sweep, summary))
    trained = {entry.name: entry.weight for entry in prepared.experiment.rewards.services if entry.weight > 0}
    draw(sweep, trained, complete, best["name"], directory / "pareto.png")
    for name in ("recommended.yaml", "table.md", "pareto.png", "sweep.yaml"):
        parent.artifact(directory / name)
    parent.metrics({f"best/{sweep.signal.metric}": best["metrics"][sweep.signal.metric]}, best["images"])
