"""The driver of a sweep: rewards once, trials by Tune, and what came out of it."""

import json
import logging
import os
import time
from collections.abc import Callable
from typing import Any

import optuna
import ray
import ray.tune
from ray.tune.schedulers import AsyncHyperBandScheduler
from ray.tune.search import BasicVariantGenerator
from ray.tune.search.optuna import OptunaSearch

from slingstone import atomic, tracking
from slingstone.config import Sweep
from slingstone.config.sweep import Uniform
from slingstone.driver import cluster, placement, rewards, run_lease
from slingstone.driver.board import open_board
from slingstone.driver.reservation import held_for_trainers
from slingstone.sweep import results
from slingstone.sweep.trial import run_trial
from slingstone.sweep.trials import PreparedSweep, as_text
from slingstone.worker.progress import duration

DRIVER_MEMORY = 256 * 2**20
"""What a trial's own process reserves, in bytes: it waits for its workers, and must take none of their CPUs."""

CLEANUP_S = 5
"""How long a trial that is stopped early may take to end by itself."""


def sweep(prepared: PreparedSweep, say: Callable[[str], None]) -> dict[str, Any]:
    """Run all trials, or those that an interrupted sweep has left; return what summary.json holds.

    Raises:
        ValueError: what the user can mend, before any trial starts; another driver holds the sweep.
        launch.RunFailed: no trial came to its end.
        KeyboardInterrupt: the user stopped it; the same command goes on.
    """
    with run_lease.held(prepared.directory, say):
        return _sweep(prepared, say)


def _sweep(prepared: PreparedSweep, say: Callable[[str], None]) -> dict[str, Any]:
    directory, experiment = prepared.directory, prepared.experiment
    prepared.begin()
    finished = directory / "summary.json"
    if (summary := atomic.read_json(finished)) is not None:
        say(f"{prepared.sweep.name} is complete: delete {directory} or give another name to start afresh")
        results.conclude(prepared, summary, say)
        return summary
    if not ray.is_initialized():
        runtime = experiment.runtime
        cluster.connect(runtime.threads_per_worker, runtime.open_cluster, dashboard=True)
    concurrent = concurrency(prepared, ray.nodes())
    say(f"{prepared.num_trials} trials, {concurrent} at a time")
    start = time.monotonic()
    held = held_for_trainers(experiment, concurrent * experiment.runtime.num_workers)
    with (
        tracking.parent_run("sweep", experiment, prepared.sweep, directory) as parent,
        rewards.running(experiment.rewards, experiment.placement, directory, held) as served,
    ):
        with open_board(say) as board:
            known = {"prepared": prepared, "served": served, "parent": parent.run_id, "board": board}
            trial = ray.tune.with_parameters(run_trial, **known)
            _tune(prepared, trial, concurrent)
        summary = results.collect(prepared, parent) | {"seconds": round(time.monotonic() - start, 1)}
        atomic.write_text(finished, json.dumps(summary, indent=1))
        parent.artifact(finished)
    results.conclude(prepared, summary, say)
    say(f"{duration(summary['seconds'])} for {prepared.num_trials} trials")
    return summary


def concurrency(prepared: PreparedSweep, nodes: placement.Nodes) -> int:
    """Return how many trials the cluster holds beside the rewards; no more ever start, so that none waits for another.

    Raises:
        ValueError: it holds none.
    """
    runtime = prepared.trial("any", {}).runtime
    experiment = prepared.experiment.model_copy(update={"runtime": runtime})
    placement.check(experiment, nodes)
    workers, each = runtime.num_workers, placement.worker_resources(experiment)
    rewards_need = placement.needs(0, each, placement.managed(experiment.rewards, experiment.placement))
    has = placement.total(placement.carrying(None, nodes))
    held = min(
        int((has[kind] - rewards_need[kind] + 1e-9) // needed)
        for kind, needed in placement.needs(workers, each, ()).items()
        if needed
    )
    if experiment.placement.trainer is not None:
        held = min(held, placement.slots(experiment, nodes) // workers)
    return max(1, min(held, prepared.num_trials, prepared.sweep.max_concurrent or held))


def _tune(prepared: PreparedSweep, trial: Callable[..., None], concurrent: int) -> None:
    trainable = ray.tune.with_resources(trial, ray.tune.PlacementGroupFactory([{"memory": DRIVER_MEMORY}]))
    # A trial that is stopped early waits for its run, and holds the CPUs of it until it is killed.
    os.environ.setdefault("TUNE_FORCE_TRIAL_CLEANUP_S", str(CLEANUP_S))
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    if ray.tune.Tuner.can_restore(str(prepared.tune_directory)):
        tuner = ray.tune.Tuner.restore(
            str(prepared.tune_directory), trainable, resume_unfinished=True, restart_errored=False
        )
    else:
        tuner = ray.tune.Tuner(
            trainable,
            param_space=param_space(prepared.sweep),
            tune_config=ray.tune.TuneConfig(
                num_samples=1 if prepared.sweep.search.kind == "grid" else prepared.num_trials,
                max_concurrent_trials=concurrent,
                search_alg=_search(prepared.sweep, concurrent),
                scheduler=_scheduler(prepared),
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=ray.tune.RunConfig(
                name=prepared.tune_directory.name, storage_path=str(prepared.directory), verbose=0
            ),
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
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(seed=search.seed, n_startup_trials=search.startup_trials)
    metrics, modes = zip(*((entry.metric, entry.mode) for entry in sweep.objectives), strict=True)
    # As lists even for one objective: then only the last result of a trial counts.
    return OptunaSearch(metric=list(metrics), mode=list(modes), sampler=sampler)


def _scheduler(prepared: PreparedSweep) -> Any:
    early = prepared.sweep.early_stopping
    if early is None:
        return None
    # No rung where trials end: there the last evaluation would be stopped rather than a trial.
    last = max(1, prepared.trial("any", {}).training.num_images - 1)
    return AsyncHyperBandScheduler(
        time_attr="images",
        **prepared.sweep.signal.model_dump(),
        max_t=last,
        stop_last_trials=False,
        grace_period=min(early.grace_images, last),
        reduction_factor=early.reduction_factor,
    )
