"""What each Ray Train worker runs: restore, train, measure, save, export."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from slingstone.checkpoints.manifest import Facts
from slingstone.checkpoints.run_directory import checkpoints
from slingstone.checkpoints.saving import Checkpoints
from slingstone.checkpoints.store import open_store
from slingstone.config import flatten
from slingstone.evaluation.table import numbers
from slingstone.worker.assembly import assemble
from slingstone.worker.assignment import Assignment
from slingstone.worker.guard import HackingGuard
from slingstone.worker.reporter import Reporter
from slingstone.worker.rollback import Rollback


def align(config: dict[str, Any]) -> dict[str, Any]:
    """Run one rank of an alignment; return the evaluations in summary.json's layout, or nothing if told to stop."""
    assignment: Assignment = config["assignment"]
    experiment, context = assignment.experiment, ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(experiment.runtime.threads_per_worker)
    reporter = Reporter(assignment, rank)
    reporter.say("loading checkpoints")
    parts = assemble(assignment, rank, world, ray.train.torch.get_device())
    flat = flatten(experiment)
    facts = partial(Facts, num_workers=world, mlflow_run_id=assignment.mlflow_run_id, config=flat)
    save = partial(Checkpoints, parts.state, recovery=experiment.recovery, config=flat, say=reporter.say)
    saved = save(open_store(checkpoints(experiment)), keep=experiment.training.keep_checkpoints)
    rollback = Rollback(parts.trainer, saved, experiment.recovery.exploding, experiment.seed, reporter.went_back)
    if (resumed := saved.restore()) is not None:
        rollback.rollbacks = resumed.rollbacks
        reporter.say(f"resumed at {resumed.images} images")
    results = {"init": parts.measure.initial(parts.averaged)}
    reporter.found("init", results["init"], 0)
    reporter.started(parts.measure, parts.averaged, results["init"])
    guarded = Path(assignment.directory) / "guard"
    guard = HackingGuard(experiment.guard, guarded, save(open_store(str(guarded / "best")), keep=1), rank)
    guard.begin(parts.measure, parts.averaged, facts(parts.trainer.images))
    while parts.trainer.images < experiment.training.num_images:
        before, found = parts.trainer.images, None
        if (metrics := rollback.step()) is None:
            continue
        images = parts.trainer.images
        reporter.step(mean_over_ranks(metrics), images, images - before)
        saved.advance()
        stopping = _any_rank(reporter.stopping())
        if _crossed(experiment.training.grid_every_images, before, images):
            parts.average()
            found = parts.measure.short(parts.averaged)
            reporter.found("training", found, images)
            ray.train.report({"images": images, **numbers(found)})
            reporter.grid(parts.measure, parts.averaged, images)
            if reporter.guarded(guard.judge(found, facts(images))).ends:
                break
        ended = images >= experiment.training.num_images
        if _crossed(experiment.training.checkpoint_every_images, before, images) or ended or stopping:
            saved.save(facts(images, score=_score(experiment.training.keep_best, found), rollbacks=rollback.rollbacks))
            reporter.saved(saved.waited_s, images)
        if stopping and not ended:
            saved.finish()
            return {}
    guard.finish()
    parts.average()
    results["aligned"] = parts.measure.aligned(parts.averaged)
    reporter.found("aligned", results["aligned"], parts.trainer.images)
    if experiment.evaluation.reference is not None:
        rival = f"reference_{experiment.evaluation.reference.steps}_steps"
        reporter.say(f"sampling the reference in {experiment.evaluation.reference.steps} steps")
        results[rival] = parts.measure.reference(rival)
        reporter.found(rival, results[rival], parts.trainer.images)
    saved.finish()
    reporter.finish(parts.measure, parts.averaged, results, parts.trainer.images)
    return results | guard.outcome | reporter.largest_stages()


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


def _any_rank(flag: bool) -> bool:
    total = torch.tensor(float(flag))
    dist.all_reduce(total)
    return bool(total)


def _score(name: str | None, summary: Mapping[str, Any] | None) -> float | None:
    """Return the number by which the best checkpoint is kept."""
    if name is None or summary is None:
        return None
    found = numbers(summary)
    if name not in found:
        raise ValueError(
            f"training.keep_best = {name!r}: evaluations find {', '.join(sorted(found))}; name one of them"
        )
    return found[name]
