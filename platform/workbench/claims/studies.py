"""The driver of the studies: every run once, as many at a time as fit, and the document after each."""

import time
from collections.abc import Callable
from pathlib import Path

import ray
from ray.exceptions import RayTaskError

from slingstone import tracking
from slingstone.config import Experiment, Rewards, to_yaml
from slingstone.driver import cluster, launch, placement, rewards
from slingstone.worker.progress import duration
from workbench.claims import charts, document, results
from workbench.claims.plan import Plan

DRIVER_MEMORY = 256 * 2**20
"""What a run's own process reserves, in bytes: it waits for its workers, and must take none of their CPUs."""


def study(plan: Plan, command: str, say: Callable[[str], None]) -> Path:
    """Run what is left of all studies; return the document.

    Raises:
        ValueError: what the user can mend, before any run starts.
        KeyboardInterrupt: the user stopped it; the same command goes on.
    """
    plan.directory.mkdir(parents=True, exist_ok=True)
    (plan.directory / "claims.yaml").write_text(to_yaml(plan.claims))
    left = [name for name in plan.runs if not (plan.run_directory(name) / "summary.json").is_file()]
    say(f"{len(plan.runs)} runs, {len(plan.runs) - len(left)} of them known")
    failed: dict[str, str] = {}
    if left:
        first = plan.runs[left[0]]
        if not ray.is_initialized():
            cluster.connect(first.runtime.threads_per_worker, first.runtime.open_cluster)
        with (
            tracking.parent_run("claims", first, plan.claims, plan.directory) as parent,
            rewards.running(first.rewards, first.placement, plan.directory) as served,
        ):
            _work(plan, left, served, parent.run_id, command, failed, say)
    path = write(plan, command, failed)
    say(f"\ndocument  {path}")
    if failed:
        say(f"{len(failed)} runs failed; the same command tries them again")
    return path


def write(plan: Plan, command: str, failed: dict[str, str]) -> Path:
    """Write the document and its pictures from what the runs have left."""
    found = results.read(plan, failed)
    pictures = {
        entry.name: [path.relative_to(plan.directory) for path in charts.draw(found, entry, plan.directory / "claims")]
        for entry in plan.claims.studies
    }
    path = plan.directory / "claims.md"
    path.write_text(document.markdown(found, command, pictures))
    return path


def _work(
    plan: Plan,
    left: list[str],
    served: Rewards,
    parent: str,
    command: str,
    failed: dict[str, str],
    say: Callable[[str], None],
) -> None:
    """Keep as many runs going as the cluster holds; what fails is noted, and the others go on."""
    task = ray.remote(num_cpus=0, memory=DRIVER_MEMORY, max_retries=0)(_run)
    concurrent, waiting, busy, start = _concurrency(plan, left), list(left), {}, time.monotonic()
    try:
        for done in range(1, len(left) + 1):
            while waiting and len(busy) < concurrent:
                name = waiting.pop(0)
                busy[task.remote(plan.runs[name], served, parent)] = name
            (finished,), _ = ray.wait(list(busy), num_returns=1)
            name = busy.pop(finished)
            try:
                ray.get(finished)
            except RayTaskError as error:
                failed[name] = " ".join(str(error.cause).split("\n  traceback:")[0].split()) or type(error).__name__
            left_s = (time.monotonic() - start) / done * (len(left) - done)
            outcome = f"failed: {failed[name]}" if name in failed else "done"
            say(f"[{done}/{len(left)}] {name} {outcome}  ETA {duration(left_s)}")
            write(plan, command, failed)
    finally:
        for reference in busy:
            ray.cancel(reference, force=False)


def _concurrency(plan: Plan, left: list[str]) -> int:
    """Return how many runs fit beside the rewards; no more start, so that none waits for another."""
    available = ray.cluster_resources()
    for name in left:
        placement.check(plan.runs[name], ray.nodes())
    run = plan.runs[left[0]]
    services = run.rewards.services if run.rewards.backend == "serve" else ()
    free = available.get("CPU", 0.0) - sum(entry.num_replicas * entry.num_cpus for entry in services)
    needs = max(plan.runs[name].runtime.num_workers * plan.runs[name].runtime.threads_per_worker for name in left)
    held = max(1, int((free + 1e-9) // needs))
    if run.runtime.use_gpu:
        held = max(1, min(held, int(available.get("GPU", 0.0) // run.runtime.num_workers)))
    return min(held, plan.claims.max_concurrent or held, len(left))


def _run(experiment: Experiment, served: Rewards, parent: str) -> None:
    """Align, in a process of its own; the rewards were started before, if they are services."""
    shared = rewards.shared(experiment.rewards, served)
    launch.align(experiment.model_copy(update={"rewards": shared}), lambda line: None, parent)
