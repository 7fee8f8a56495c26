"""A few steps of a run under torch's profiler: one worker's share of the batch, with the run's rewards as services."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from slingstone.config import Experiment
from slingstone.driver import cluster, launch, placement, rewards
from slingstone.driver.board import open_board
from slingstone.worker.assignment import Assignment

WARM_UP = 2
STEPS = 3
ROWS = 20


def trace(experiment: Experiment, say: Callable[[str], None]) -> Path:
    """Write `<storage>/profile/<name>/trace.json`, for chrome://tracing or Perfetto, and say what took longest.

    Args:
        experiment: with absolute paths, see `preflight.prepare`; its workers train as in a run, without its warm-up.
        say: shows a line.

    Raises:
        launch.RunFailed: a worker failed.
    """
    directory = Path(experiment.storage) / "profile" / experiment.name
    directory.mkdir(parents=True, exist_ok=True)
    at_once = experiment.training.model_copy(update={"warmup_images": 0})
    experiment = experiment.model_copy(update={"training": at_once})
    if not ray.is_initialized():
        cluster.connect(experiment.runtime.threads_per_worker, experiment.runtime.open_cluster)
    placement.check(experiment, ray.nodes())
    with rewards.running(experiment.rewards, experiment.placement, directory) as served, open_board(say) as board:
        assignment = Assignment(experiment, str(directory), "", "", board, served)
        found = launch.fit(experiment, _rank, {"assignment": assignment}, directory)
    say(found["table"])
    say(f"trace     {directory / 'trace.json'}")
    return directory / "trace.json"


def _rank(config: dict[str, Any]) -> dict[str, Any]:
    """Take the steps on one rank; rank 0 writes the trace."""
    import ray.train.torch  # here: neither driver nor controller needs networks
    import torch
    from torch.profiler import ProfilerActivity, profile

    from slingstone.worker.assembly import assemble

    assignment, context = config["assignment"], ray.train.get_context()
    torch.set_num_threads(assignment.experiment.runtime.threads_per_worker)
    device = ray.train.torch.get_device()
    rank = context.get_world_rank()
    trainer = assemble(assignment, rank, context.get_world_size(), device).trainer
    for _ in range(WARM_UP):
        trainer.step()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as found:
        for _ in range(STEPS):
            trainer.step()
    if rank == 0:
        found.export_chrome_trace(str(Path(assignment.directory) / "trace.json"))
    order = "cuda_time_total" if device.type == "cuda" else "cpu_time_total"
    return {"table": found.key_averages().table(sort_by=order, row_limit=ROWS)}
