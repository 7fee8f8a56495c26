"""The driver of a sweep: rewards once, trials by Tune, and what came out of it."""

import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import ray.tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler
from ray.tune.search import BasicVariantGenerator

from slingstone import tracking
from slingstone.config import Sweep, flatten
from slingstone.config.sweep import Uniform
from slingstone.driver import cluster, placement, rewards
from slingstone.driver.board import open_board
from slingstone.driver.reservation import held_for_trainers
from slingstone.sweep import results
from slingstone.sweep.trial import Brief, run_trial
from slingstone.sweep.trials import Plan, as_text
from slingstone.worker.progress import duration

DRIVER_MEMORY = 256 * 2**20
"""What a trial's own process reserves, in bytes: it waits for its workers, and must take none of their CPUs."""

CLEANUP_S = 5
"""How long a trial that is stopped early may take to end by itself."""


def sweep(plan: Plan, say: Callable[[str], None]) -> dict[str, Any]:
    """Run all trials, or those that an interrupted sweep has left; return what summary.json holds.

    Raises:
        ValueError: what the user can mend, before any trial starts.
        launch.RunFailed: no trial came to its end.
        KeyboardInterrupt: the user stopped it; the same command goes on.
    """
    finished = plan.directory / "summary.json"
    plan.begin()
    if finished.is_file():
        say(f"{plan.sweep.name} is complete: delete {plan.directory} or give another name to start afresh")
        results.conclude(plan, json.loads(finished.read_text()), say)
        return json.loads(finished.read_text())
    if not ray.is_initialized():
        cluster.connect(plan.run.runtime.threads_per_worker, dashboard=True)
    concurrent = concurrency(plan, ray.nodes())
    say(f"{plan.num_trials} trials, {concurrent} at a time")
    start = time.monotonic()
    held = held_for_trainers(plan.run, concurrent * plan.run.runtime.num_workers)
    with rewards.running(plan.run.rewards, plan.run.placement, held):
        uri = tracking.tracking_uri(plan.run)
        parent = _parent(plan, uri)
        status = "FAILED"
        try:
            with open_board(say) as board:
                _tune(plan, Brief(plan, parent.run_id, board), concurrent)
            summary = results.collect(plan, parent) | {"seconds": round(time.monotonic() - start, 1)}
            finished.write_text(json.dumps(summary, indent=1))
            parent.artifact(finished)
            status = "FINISHED"
        except (KeyboardInterrupt, SystemExit):
            status = "KILLED"
            raise
        finally:
            parent.end(status)
    results.conclude(plan, summary, say)
    say(f"{duration(summary['seconds'])} for {plan.num_trials} trials")
    return summary


def concurrency(plan: Plan, nodes: placement.Nodes) -> int:
    """Return how many trials the cluster holds beside the rewards; no more ever start, so that none waits for another.

    Raises:
        ValueError: it holds none.
    """
    run = plan.run.model_copy(update={"runtime": plan.trial("any", {}).runtime})
    placement.check(run, nodes)
    workers, each = run.runtime.num_workers, placement.worker_resources(run)
    rewards_need = placement.needs(0, each, placement.managed(run.rewards, run.placement))
    has = placement.total(placement.carrying(None, nodes))
    held = min(
        int((has[kind] - rewards_need[kind] + 1e-9) // needed)
        for kind, needed in placement.needs(workers, each, ()).items()
        if needed
    )
    if run.placement.trainer is not None:
        held = min(held, placement.slots(run, nodes) // workers)
    return max(1, min(held, plan.num_trials, plan.sweep.max_concurrent or held))


def _tune(plan: Plan, brief: Brief, concurrent: int) -> None:
    trainable = ray.tune.with_resources(
        ray.tune.with_parameters(run_trial, brief=brief),
        ray.tune.PlacementGroupFactory([{"memory": DRIVER_MEMORY}]),
    )
    path = results.tune_directory(plan)
    # A trial that is stopped early waits for its run, and holds the CPUs of it until it is killed.
    os.environ.setdefault("TUNE_FORCE_TRIAL_CLEANUP_S", str(CLEANUP_S))
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    if ray.tune.Tuner.can_restore(str(path)):
        tuner = ray.tune.Tuner.restore(str(path), trainable, resume_unfinished=True, restart_errored=False)
    else:
        tuner = ray.tune.Tuner(
            trainable,
            param_space=param_space(plan.sweep),
            tune_config=ray.tune.TuneConfig(
                num_samples=1 if plan.sweep.search.kind == "grid" else plan.num_trials,
                max_concurrent_trials=concurrent,
                search_alg=_search(plan.sweep, concurrent),
                scheduler=_scheduler(plan),
                trial_dirname_creator=_directory,
            ),
            run_config=ray.tune.RunConfig(name=path.name, storage_path=str(path.parent), verbose=0),
        )
    tuner.fit()


def param_space(sweep: Sweep) -> dict[str, Any]:
    """Return the sweep's paths in Tune's terms; a choice goes by its YAML, so that it may be a whole section."""

    def domain(values: Any) -> Any:
        if isinstance(values, Uniform):
            return (ray.tune.loguniform if values.log else ray.tune.uniform)(values.low, values.high)
        texts = [as_text(value) for value in values.values]
        return ray.tune.grid_search(texts) if sweep.search.kind == "grid" else ray.tune.choice(texts)

    return {path: domain(values) for path, values in sweep.space.items()}


def _search(sweep: Sweep, concurrent: int) -> Any:
    search = sweep.search
    if search.kind != "optuna":
        seed = None if search.kind == "grid" else search.seed
        return BasicVariantGenerator(max_concurrent=concurrent, random_state=seed)
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(seed=search.seed, n_startup_trials=search.startup_trials)
    metrics, modes = zip(*((entry.metric, entry.mode) for entry in sweep.objectives), strict=True)
    # As lists even for one objective: then only the last result of a trial counts.
    return OptunaSearch(metric=list(metrics), mode=list(modes), sampler=sampler)


def _scheduler(plan: Plan) -> Any:
    early = plan.sweep.early_stopping
    if early is None:
        return FIFOScheduler()
    # No rung where trials end: there the last evaluation would be stopped rather than a trial.
    last = max(1, plan.trial("any", {}).training.num_images - 1)
    return AsyncHyperBandScheduler(
        time_attr="images",
        metric=plan.sweep.signal.metric,
        mode=plan.sweep.signal.mode,
        max_t=last,
        stop_last_trials=False,
        grace_period=min(early.grace_images, last),
        reduction_factor=early.reduction_factor,
    )


def _directory(trial: Any) -> str:
    return str(trial.trial_id)


def _parent(plan: Plan, uri: str) -> tracking.Run:
    """Return the MLflow run under which the trials are shown, the one of before if the sweep goes on."""
    path = plan.directory / "mlflow.json"
    if path.is_file() and (saved := json.loads(path.read_text()))["uri"] == uri:
        return tracking.reopened(uri, saved["run_id"])
    remote = plan.run.tracking.uri or "MLFLOW_TRACKING_URI" in os.environ
    artifacts = None if remote else Path(plan.sweep.storage)
    tags = {"directory": str(plan.directory), "kind": "sweep"}
    name = f"sweep {plan.sweep.name}"
    run = tracking.create_run(uri, plan.run.tracking.experiment, name, flatten(plan.sweep), tags, artifacts)
    path.write_text(json.dumps({"uri": uri, "run_id": run.run_id}))
    return run
