"""One trial: an align run like any other, whose held-out numbers Tune is told of."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.tune
from ray.tune.integration.ray_train import TuneReportCallback

from slingstone.driver import launch
from slingstone.evaluation.table import numbers
from slingstone.sweep.trials import Plan


@dataclass(frozen=True)
class Brief:
    """What every trial of a sweep is told.

    Attributes:
        plan: the sweep.
        parent: id of its MLflow run.
        board: handle of the actor that shows lines to the user.
    """

    plan: Plan
    parent: str
    board: Any


class Forward(ray.train.UserCallback):
    """Passes the evaluations of a run's workers on to Tune; what else they report is no result."""

    def __init__(self) -> None:
        self._tune = TuneReportCallback()

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Pass on a report that holds more than a position."""
        if set(metrics[0]) > {"images"}:
            self._tune.after_report(run_context, metrics, checkpoint)


def run_trial(values: dict[str, Any], brief: Brief) -> None:
    """Align with these values of the sweep's paths, in a process that Tune started.

    A trial holds no CPU of its own, since its Train workers reserve theirs outside of Tune's placement group; the
    number of concurrent trials is what keeps them within the cluster.
    """
    trial = ray.tune.get_context().get_trial_id()
    name = trial_name(brief.plan, str(trial))

    def say(line: str) -> None:
        if line and not line.startswith("["):  # a progress bar a trial would drown the rest
            brief.board.say.remote(f"{name}: {line}")

    say("  ".join(f"{path} {value}" for path, value in shown(values).items()))
    try:
        run = brief.plan.trial(name, values)
        summary = launch.align(run, lambda line: None, brief.parent, [Forward()])
    except Exception as error:
        reason = " ".join(str(error).split("\n  traceback:")[0].split()) or type(error).__name__
        path = reason_file(brief.plan, str(trial))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(reason)
        say(f"failed: {reason}")
        raise
    found = numbers(summary["aligned"])
    signal = brief.plan.sweep.signal.metric
    say(f"{signal} {found[signal]:.4g} after {summary['images']} images, {summary['seconds']:.0f} s")
    ray.tune.report({"images": summary["images"], **found})


def trial_name(plan: Plan, trial: str) -> str:
    """Return the name of a trial's run, the same when the sweep goes on after an interruption."""
    return f"{plan.sweep.name}-{trial}"


def reason_file(plan: Plan, trial: str) -> Path:
    """Return where a trial that failed says why."""
    return plan.directory / "failed" / f"{trial}.txt"


def shown(values: dict[str, Any]) -> dict[str, str]:
    """Return values short enough for a line."""
    return {path: f"{value:.4g}" if isinstance(value, float) else str(value) for path, value in values.items()}
