"""The driver of a run: check, connect, start the rewards, train, and say what came out."""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.exceptions import RayActorError
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from slingstone.config import Experiment
from slingstone.runtime import placement, preflight, rewards, tracking
from slingstone.runtime.assignment import Assignment
from slingstone.runtime.failures import RunFailed, cause, is_mistake, surviving
from slingstone.runtime.history import History, newest
from slingstone.runtime.journal import Journal, journal_of
from slingstone.runtime.progress import duration, final_table
from slingstone.runtime.reservation import held_for_trainers
from slingstone.runtime.stopping import told_to_stop


def align(
    run: Experiment,
    say: Callable[[str], None],
    parent: str | None = None,
    callbacks: Sequence[ray.train.UserCallback] = (),
    rank: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Align a generator on the cluster that this process has joined, or else joins; return what summary.json holds.

    Args:
        run: with absolute paths, see `preflight.prepare`.
        say: shows a line to the user.
        parent: id of the MLflow run that this one is shown under, such as a sweep's.
        callbacks: told of every report of the workers.
        rank: what every worker runs; by default `worker.align`.

    Raises:
        ValueError: what the user can mend, before anything is held.
        RunFailed: training did not come to its end; the run's directory holds the traceback.
        SystemExit: SIGTERM came; the run is saved, and the same name continues it.
    """
    history = History(Path(run.storage) / "align" / run.name)
    history.check(run)
    if (done := history.summary) is not None and history.complete(run):
        say(f"{run.name} is complete: delete {history.directory} or give another name to start afresh")
        journal = journal_of(history.directory, done["mlflow_run_id"])
        if Journal(journal).undelivered()[0]:
            tracking.Run(tracking.tracking_uri(run), done["mlflow_run_id"], journal, "spool").end("FINISHED")
        _conclude(done, history, say)
        return done
    if not ray.is_initialized():
        connect(run.runtime.threads_per_worker)
    preflight.fits(run, ray.cluster_resources())
    placement.check(run, ray.nodes())
    start = time.monotonic()
    with rewards.running(placement.placed(run.rewards, run.placement), held_for_trainers(run)):
        if run.rewards.services and run.rewards.backend == "serve":
            names = ", ".join(entry.name for entry in run.rewards.services)
            say(f"rewards are up: {names} ({duration(time.monotonic() - start)})")
        uri = tracking.tracking_uri(run)
        history.directory.mkdir(parents=True, exist_ok=True)
        opened = tracking.open_run(run, uri, history.directory, history.mlflow_run(uri), parent)
        # With the workers' journal, to deliver what they could not.
        journal = journal_of(history.directory, opened.run_id)
        tracked = tracking.Run(uri, opened.run_id, journal, run.tracking.on_failure)
        status = "FAILED"
        try:
            history.begin(run, uri, tracked.run_id)
            with told_to_stop(say) as stop, board(say, stop) as shown:
                config = {"assignment": Assignment(run, str(history.directory), uri, tracked.run_id, shown)}
                attempt = partial(fit, run, rank or _rank, config, history.directory, callbacks)
                results = surviving(attempt, partial(newest, run), run.recovery.max_failures, say)
            if not results:
                say(f"saved; the same command continues {run.name}")
                raise SystemExit(128 + signal.SIGTERM)
            images = results.get("guard", {}).get("images", run.training.num_images)
            facts = {"name": run.name, "images": images, "mlflow_run_id": tracked.run_id}
            facts |= {"mlflow_uri": tracking.redacted(uri), "seconds": round(time.monotonic() - start, 1)}
            tracked.artifact(history.end(results | facts))
            tracked.artifact(history.directory / "config.yaml")
            status = "FINISHED"
        except (KeyboardInterrupt, SystemExit):
            status = "KILLED"
            raise
        finally:
            if not tracked.end(status):
                say(f"MLflow cannot be reached: numbers wait in {history.directory}, the same command delivers them")
    _conclude(results | facts, history, say)
    return results | facts


def connect(threads_per_worker: int, dashboard: bool = False) -> None:
    """Join the cluster that RAY_ADDRESS names, as in a submitted job, or start one in this process.

    Workers and replicas import this very source, not what happens to be installed where they run.

    Args:
        threads_per_worker: of every process.
        dashboard: whether one that starts here has a dashboard, by which Ray Train learns that a run was killed and
            its CPUs are free.
    """
    source = os.pathsep.join([str(preflight.ROOT / "platform"), str(preflight.ROOT)])
    threads = str(threads_per_worker)
    env = {
        "PYTHONPATH": source,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION": "0",
        # What never fits was refused before; what does may wait for a trial that is being taken down, or for a node.
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
    }
    address = os.environ.get("RAY_ADDRESS", "local")
    local: dict[str, Any] = {"include_dashboard": dashboard} if address == "local" else {}
    if address != "local":
        env["RAY_ADDRESS"] = address  # where several clusters share a machine, Ray's own helpers would not know which
    ray.init(address=address, runtime_env={"env_vars": env}, log_to_driver=False, logging_level=logging.ERROR, **local)


class _Board:
    """An actor between rank 0 and the driver: lines, what the workers hold, and the driver's wish to stop.

    Worker logs would reach the driver with prefixes, out of order.
    """

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._stopping = False
        self._group: PlacementGroup | None = None

    def hold(self, group: PlacementGroup) -> None:
        self._group = group

    def held(self) -> PlacementGroup | None:
        return self._group

    def stop(self) -> None:
        self._stopping = True

    def stopping(self) -> bool:
        return self._stopping

    def say(self, line: str) -> None:
        self._lines.append(line)

    def take(self) -> list[str]:
        taken, self._lines = self._lines, []
        return taken


@contextmanager
def board(say: Callable[[str], None], stop: threading.Event | None = None) -> Iterator[Any]:
    """Yield the handle of a board whose lines `say` shows in this process, and that passes on the wish to stop."""
    # Beside this driver, so that it is there for the workers of the next attempt when their nodes are lost.
    here: Any = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    shown: Any = ray.remote(num_cpus=0, scheduling_strategy=here)(_Board).remote()
    over = threading.Event()

    def show() -> None:
        while True:
            last = over.wait(0.5)
            if stop is not None and stop.is_set():
                shown.stop.remote()
            for line in ray.get(shown.take.remote()):
                say(line)
            if last:
                return

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield shown
    finally:
        over.set()
        thread.join(timeout=10)
        ray.kill(shown)


def _rank(config: dict[str, Any]) -> dict[str, Any]:
    from slingstone.runtime.worker import align  # here, since Ray's controller loads this function too

    return align(config)


def fit(
    run: Experiment,
    rank: Callable[[dict[str, Any]], dict[str, Any]],
    config: dict[str, Any],
    directory: Path,
    callbacks: Sequence[ray.train.UserCallback] = (),
) -> dict[str, Any]:
    """Have every Train worker run `rank(config)`; return what rank 0 returned.

    Raises:
        RunFailed: a worker raised or died; `directory` holds the traceback.
    """
    runtime = run.runtime
    accelerator = {} if runtime.use_gpu else {"DS_ACCELERATOR": "cpu"}
    trainer = ray.train.torch.TorchTrainer(
        rank,
        train_loop_config=config,
        # Metrics and evaluations are on the CPU, gradients on the GPU: a group that takes both.
        torch_config=ray.train.torch.TorchConfig(backend="cpu:gloo,cuda:nccl" if runtime.use_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(**placement.scaling(run)),
        run_config=ray.train.RunConfig(
            name=run.name,
            storage_path=str(directory.parent),
            failure_config=ray.train.FailureConfig(max_failures=0, controller_failure_limit=3),
            worker_runtime_env={"env_vars": accelerator},
            callbacks=[*callbacks],
        ),
    )
    try:
        results = trainer.fit().return_value
    except (TrainingFailedError, RayActorError) as error:
        _release(config["assignment"].board)
        log = directory / "error.txt"
        log.write_text(str(error))
        raise RunFailed(f"training failed: {cause(error)}\n  traceback: {log}", is_mistake(error)) from error
    assert results is not None
    return results


def _release(board: Any) -> None:
    """Free what the workers held. Ray Train's controller does it, or its cleaner if that dies; both may have died."""
    group: Any = ray.get(board.held.remote())
    if group is not None:
        remove_placement_group(group)


def _conclude(summary: dict[str, Any], history: History, say: Callable[[str], None]) -> None:
    say("")
    say(final_table({name: found for name, found in summary.items() if isinstance(found, dict) and "rewards" in found}))
    say("")
    if "guard" in summary:
        say(f"{summary['guard']['reason']}\n")
    say(f"picture   {history.directory / 'pictures' / 'grid.png'}")
    say(f"pipeline  {history.directory / 'pipeline'}")
    say(f"summary   {history.directory / 'summary.json'}")
    say(f"MLflow    {Path(sys.executable).parent / 'mlflow'} ui --backend-store-uri {summary['mlflow_uri']}")
