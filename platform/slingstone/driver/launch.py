"""The driver of a run: check, connect, start the rewards, train, and say what came out."""

import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.exceptions import RayActorError
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.util.placement_group import remove_placement_group

from slingstone import tracking
from slingstone.checkpoints.run_directory import RunDirectory, newest
from slingstone.config import Experiment, Rewards, TrainingJob
from slingstone.config.credentials import concealed
from slingstone.driver import placement, rewards, run_lease
from slingstone.driver.board import open_board
from slingstone.driver.cluster import connect
from slingstone.driver.failures import RunFailed, cause, is_mistake, surviving
from slingstone.driver.reservation import held_for_trainers
from slingstone.driver.stopping import told_to_stop
from slingstone.evaluation.table import evaluations, final_table
from slingstone.plan.cut_prompts import cut_prompts, told
from slingstone.tracking.journal import Journal, journal_of
from slingstone.worker.assignment import Assignment
from slingstone.worker.progress import duration


def align(
    experiment: Experiment,
    say: Callable[[str], None],
    parent: str | None = None,
    callbacks: Sequence[ray.train.UserCallback] = (),
    rank: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Align a generator on the cluster that this process has joined, or else joins; return what summary.json holds.

    Args:
        experiment: with absolute paths, see `preflight.prepare`.
        say: shows a line to the user.
        parent: id of the MLflow run that this one is shown under, such as a sweep's.
        callbacks: told of every report of the workers.
        rank: what every worker runs; by default the loop.

    Raises:
        ValueError: what the user can mend, before anything is held; another driver holds the run.
        RunFailed: training did not come to its end; the run's directory holds the traceback.
        SystemExit: SIGTERM came; the run is saved, and the same name continues it.
    """
    history = RunDirectory(Path(experiment.storage) / experiment.job / experiment.name)
    with run_lease.held(history.directory, say):
        return _align(experiment, history, say, parent, callbacks, rank or _rank)


def _align(
    experiment: Experiment,
    history: RunDirectory,
    say: Callable[[str], None],
    parent: str | None,
    callbacks: Sequence[ray.train.UserCallback],
    rank: Callable[[dict[str, Any]], dict[str, Any]],
) -> dict[str, Any]:
    history.check(experiment)
    if (done := history.summary) is not None and history.complete(experiment):
        say(f"{experiment.name} is complete: delete {history.directory} or give another name to start afresh")
        journal = journal_of(history.directory, done["mlflow_run_id"])
        if Journal(journal).undelivered()[0]:
            tracking.Run(tracking.tracking_uri(experiment), done["mlflow_run_id"], journal, "spool").end("FINISHED")
        _conclude(done, history, say)
        return done
    uri = tracking.ready(experiment)
    if not ray.is_initialized():
        connect(experiment.runtime.threads_per_worker, experiment.runtime.open_cluster)
    placement.check(experiment, ray.nodes())
    start, cut = time.monotonic(), cut_prompts(experiment)
    say("\n".join(told(cut)))
    held = held_for_trainers(experiment)
    with rewards.running(experiment.rewards, experiment.placement, history.directory, held) as served:
        if experiment.rewards.services and experiment.rewards.backend == "serve":
            names = ", ".join(entry.name for entry in experiment.rewards.services)
            say(f"rewards are up: {names} ({duration(time.monotonic() - start)})")
        rewards.check_gradients(experiment, served)
        with tracked(experiment, uri, history, say, parent) as run:
            results = survived(experiment, rank, history, run, say, callbacks, served)
            images = results.get("guard", {}).get("images", experiment.training.num_images)
            facts = {"name": experiment.name, "images": images, "mlflow_run_id": run.run_id}
            facts |= {"cut_prompts": cut}
            facts |= {"mlflow_uri": tracking.redacted(uri), "seconds": round(time.monotonic() - start, 1)}
            run.artifact(history.end(results | facts))
            run.artifact(history.directory / "config.yaml")
    _conclude(results | facts, history, say)
    return results | facts


@contextmanager
def tracked(
    job: TrainingJob, uri: str, history: RunDirectory, say: Callable[[str], None], parent: str | None = None
) -> Iterator[tracking.Run]:
    """Yield the MLflow run of a job, the one of before if it goes on; it ends as the block: finished, failed or killed.

    Args:
        job: what runs.
        uri: of the store.
        history: of the job.
        say: shows a line to the user.
        parent: id of the run that it is shown under.
    """
    opened = tracking.open_run(job, uri, history.directory, history.mlflow_run(uri), parent)
    # With the workers' journal, to deliver what they could not.
    run = tracking.Run(uri, opened.run_id, journal_of(history.directory, opened.run_id), job.tracking.on_failure)
    status = "FAILED"
    try:
        yield run
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    finally:
        if not run.end(status):
            say(f"MLflow cannot be reached: numbers wait in {history.directory}, the same command delivers them")


def survived(
    experiment: TrainingJob,
    rank: Callable[[dict[str, Any]], dict[str, Any]],
    history: RunDirectory,
    run: tracking.Run,
    say: Callable[[str], None],
    callbacks: Sequence[ray.train.UserCallback] = (),
    served: Rewards | None = None,
) -> dict[str, Any]:
    """Have workers run `rank` to its end from the newest checkpoint, whatever dies on the way; return its results.

    Raises:
        RunFailed: training did not come to its end.
        SystemExit: SIGTERM came; what was reached is saved.
    """
    history.begin(experiment, run.uri, run.run_id)
    with told_to_stop(say) as stop, open_board(say, stop) as shown:
        assignment = Assignment(experiment, str(history.directory), run.uri, run.run_id, shown, served)
        attempt = partial(fit, experiment, rank, {"assignment": assignment}, history.directory, callbacks)
        results = surviving(attempt, partial(newest, experiment), experiment.recovery.max_failures, say)
    if not results:
        say(f"saved; the same command continues {experiment.name}")
        raise SystemExit(128 + signal.SIGTERM)
    return results


def _rank(config: dict[str, Any]) -> dict[str, Any]:
    from slingstone.worker.loop import align  # here, since Ray's controller loads this function too

    return align(config)


def fit(
    experiment: TrainingJob,
    rank: Callable[[dict[str, Any]], dict[str, Any]],
    config: dict[str, Any],
    directory: Path,
    callbacks: Sequence[ray.train.UserCallback] = (),
) -> dict[str, Any]:
    """Have every Train worker run `rank(config)`; return what rank 0 returned.

    Raises:
        RunFailed: a worker raised or died; `directory` holds the traceback.
    """
    runtime = experiment.runtime
    accelerator = {} if runtime.use_gpu else {"DS_ACCELERATOR": "cpu"}
    trainer = ray.train.torch.TorchTrainer(
        rank,
        train_loop_config=config,
        # Metrics and evaluations are on the CPU, gradients on the GPU: a group that takes both.
        torch_config=ray.train.torch.TorchConfig(backend="cpu:gloo,cuda:nccl" if runtime.use_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(**placement.scaling(experiment)),
        run_config=ray.train.RunConfig(
            name=experiment.name,
            storage_path=str(directory.parent),
            failure_config=ray.train.FailureConfig(max_failures=0, controller_failure_limit=3),
            worker_runtime_env={"env_vars": accelerator},
            callbacks=[*callbacks],
        ),
    )
    try:
        results = trainer.fit().return_value
    except (TrainingFailedError, RayActorError) as error:
        # Ray Train's controller frees what the workers reserve, or its cleaner does; both may have died.
        reservation: Any = ray.get(config["assignment"].board.reservation.remote())
        if reservation is not None:
            remove_placement_group(reservation)
        log = directory / "error.txt"
        log.write_text(concealed(str(error)))
        raise RunFailed(f"training failed: {cause(error)}\n  traceback: {log}", is_mistake(error)) from error
    assert results is not None
    return results


def _conclude(summary: dict[str, Any], history: RunDirectory, say: Callable[[str], None]) -> None:
    say(f"\n{final_table(evaluations(summary))}\n")
    if summary.get("largest_stages"):
        shares = ", ".join(f"{name} {share:.0%}" for name, share in summary["largest_stages"].items())
        say(f"most of a training step's time: {shares}\n")
    if "cut_prompts" in summary:
        say("\n".join(told(summary["cut_prompts"])))
    if "guard" in summary:
        say(f"{summary['guard']['reason']}\n")
    for title, name in (("picture", "pictures/grid.png"), ("pipeline", "pipeline"), ("summary", "summary.json")):
        say(f"{title:<9} {history.directory / name}")
    for line in next_steps(history.directory, summary["mlflow_uri"], "utility" in summary.get("aligned", {})):
        say(line)


def next_steps(directory: Path, mlflow_uri: str, in_world: bool) -> list[str]:
    """Return what to do with a run that came to its end, in order, as commands that a shell takes as they are.

    Args:
        directory: of the run.
        mlflow_uri: where its numbers are.
        in_world: whether it is of the embedded world, for which configs/ has an arena, a comparison and a sweep.
    """
    programs = Path(sys.executable).parent
    ours, run, target = programs / "slingstone", quote(str(directory)), quote(f"{directory}-export")
    steps = {"look": f"{programs / 'mlflow'} ui --backend-store-uri {quote(mlflow_uri)}"}
    if in_world:
        steps["try"] = f"{ours} arena configs/arena/scenes.yaml generators.aligned.run={run}"
        steps["compare"] = f"{ours} evaluate configs/evaluate/scenes.yaml models.aligned.run={run}"
    steps["export"] = f"{ours} export {run} {target}"
    if in_world:
        steps["sweep"] = f"{ours} sweep configs/sweep/scenes.yaml"
    return ["\nnext", *(f"  {name:<8}{line}" for name, line in steps.items())]
