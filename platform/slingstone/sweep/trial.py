"""One trial: an align run like any other, whose held-out numbers Tune is told of."""

from typing import Any

import ray
import ray.train
import ray.tune
from ray.tune.integration.ray_train import TuneReportCallback

from slingstone.config import Rewards
from slingstone.driver import launch, rewards
from slingstone.evaluation.table import numbers
from slingstone.sweep.table import as_cell
from slingstone.sweep.trials import PreparedSweep


class EvaluationsToTune(ray.train.UserCallback):
    """Passes the evaluations of a run's workers on to Tune; what else they report is no result."""

    def __init__(self) -> None:
        self._tune = TuneReportCallback()

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Pass on a report that holds more than a position."""
        if set(metrics[0]) > {"images"}:
            self._tune.after_report(run_context, metrics, checkpoint)


def run_trial(values: dict[str, Any], prepared: PreparedSweep, served: Rewards, parent: str, board: Any) -> None:
    """Align with these values of the sweep's paths, in a process that Tune started.

    A trial holds no CPU of its own, since its Train workers reserve theirs outside of Tune's placement group; the
    number of concurrent trials is what keeps them within the cluster.

    Args:
        values: by dotted path.
        prepared: the sweep.
        served: the rewards that all trials share.
        parent: id of its MLflow run.
        board: handle of the actor that shows lines to the user.
    """
    trial = str(ray.tune.get_context().get_trial_id())
    name = prepared.trial_name(trial)

    def say(line: str) -> None:
        board.say.remote(f"{name}: {line}")

    say("  ".join(f"{path} {as_cell(value)}" for path, value in values.items()))
    try:
        # Without its own lines: a progress bar a trial would drown the rest.
        experiment = prepared.trial(name, values)
        experiment = experiment.model_copy(update={"rewards": rewards.shared(experiment.rewards, served)})
        summary = launch.align(experiment, lambda line: None, parent, [EvaluationsToTune()])
    except Exception as error:
        reason = " ".join(str(error).split("\n  traceback:")[0].split()) or type(error).__name__
        path = prepared.reason_file(trial)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(reason)
        say(f"failed: {reason}")
        raise
    found = numbers(summary["aligned"])
    signal = prepared.sweep.signal.metric
    say(f"{signal} {found[signal]:.4g} after {summary['images']} images, {summary['seconds']:.0f} s")
    ray.tune.report({"images": summary["images"], **found})
