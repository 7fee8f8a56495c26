"""What each Ray Train worker runs: restore, train, measure, save, export."""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from slingstone.config import Experiment, flatten
from slingstone.runtime.assembly import Parts, assemble
from slingstone.runtime.assignment import Assignment
from slingstone.runtime.checkpoint import Facts, averaged_weights
from slingstone.runtime.report import Reporter, numbers
from slingstone.runtime.watch import Watch


def align(config: dict[str, Any]) -> dict[str, Any]:
    """Run one rank of an alignment to its end; return the evaluations in summary.json's layout."""
    assignment: Assignment = config["assignment"]
    run, context = assignment.experiment, ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(run.runtime.threads_per_worker)
    reporter = Reporter(assignment, rank)
    reporter.say("loading checkpoints")
    parts = assemble(assignment, rank, world, ray.train.torch.get_device())
    facts = partial(Facts, num_workers=world, mlflow_run_id=assignment.mlflow_run_id, config=flatten(run))
    _restore(parts, reporter)
    results = {"init": parts.measure.initial(parts.averaged)}
    reporter.found("init", results["init"], parts.trainer.images)
    reporter.started(parts.measure, parts.averaged, results["init"])
    watch = Watch(run.guard, Path(assignment.directory), parts.state)
    watch.begin(parts.measure, parts.averaged, facts(parts.trainer.images))
    while parts.trainer.images < run.training.num_images:
        before = parts.trainer.images
        reporter.step(mean_over_ranks(parts.trainer.step()), parts.trainer.images, parts.trainer.images - before)
        if _crossed(run.training.grid_every_images, before, parts.trainer.images):
            _average(parts)
            found = parts.measure.short(parts.averaged)
            reporter.found("training", found, parts.trainer.images)
            ray.train.report({"images": parts.trainer.images, **numbers(found)})
            reporter.grid(parts.measure, parts.averaged, parts.trainer.images)
            if reporter.guarded(watch.judge(found, facts(parts.trainer.images))).ends:
                break
        if _crossed(run.training.checkpoint_every_images, before, parts.trainer.images) or _ended(run, parts):
            _save(parts, facts(parts.trainer.images))
    watch.finish()
    _average(parts)
    results["aligned"] = parts.measure.aligned(parts.averaged)
    reporter.found("aligned", results["aligned"], parts.trainer.images)
    if run.evaluation.reference is not None:
        rival = f"reference_{run.evaluation.reference.steps}_steps"
        reporter.say(f"sampling the reference in {run.evaluation.reference.steps} steps")
        results[rival] = parts.measure.reference(rival)
        reporter.found(rival, results[rival], parts.trainer.images)
    reporter.finish(parts.measure, parts.averaged, results)
    return results | watch.outcome


def mean_over_ranks(metrics: dict[str, float]) -> dict[str, float]:
    """Average each metric over the ranks; counts of dropped samples are added. A collective: keys must agree."""
    names = sorted(metrics)
    values = torch.tensor([metrics[name] for name in names], dtype=torch.float64)
    dist.all_reduce(values)
    world = dist.get_world_size()
    return {
        name: value if name.startswith("nonfinite/") else value / world
        for name, value in zip(names, values.tolist(), strict=True)
    }


def _crossed(every: int, before: int, after: int) -> bool:
    return before // every < after // every


def _ended(run: Experiment, parts: Parts) -> bool:
    return parts.trainer.images >= run.training.num_images


def _average(parts: Parts) -> None:
    weights = averaged_weights(parts.trainer, parts.state.engines["generator"])
    parts.averaged.load_state_dict(weights, strict=False)


def _restore(parts: Parts, reporter: Reporter) -> None:
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as directory:
            facts = parts.state.restore(Path(directory))
        reporter.say(f"resumed at {facts.images} images")


def _save(parts: Parts, facts: Facts) -> None:
    with tempfile.TemporaryDirectory() as directory:  # one a rank: Ray merges them
        parts.state.save(Path(directory), facts)
        checkpoint = ray.train.Checkpoint.from_directory(directory)
        ray.train.report({"images": facts.images}, checkpoint=checkpoint)
