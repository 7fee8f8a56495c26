"""What each Ray Train worker runs: restore, train, measure, save, export."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch

from slingstone.checkpoints.manifest import Facts
from slingstone.checkpoints.run_directory import BEST, checkpoints
from slingstone.checkpoints.saving import Checkpoints
from slingstone.checkpoints.store import open_store
from slingstone.config import Experiment, flatten
from slingstone.evaluation.ranking import rank as ranked
from slingstone.evaluation.table import numbers
from slingstone.worker.assembly import assemble
from slingstone.worker.assignment import Assignment
from slingstone.worker.guard import HackingGuard
from slingstone.worker.measure import require_finite
from slingstone.worker.ranks import any_rank, crossed, mean_over_ranks
from slingstone.worker.reporter import Reporter
from slingstone.worker.rollback import Rollback


def align(config: dict[str, Any]) -> dict[str, Any]:
    """Run one rank of an alignment; return the evaluations in summary.json's layout, or nothing if told to stop."""
    assignment: Assignment[Experiment] = config["assignment"]
    experiment, context = assignment.experiment, ray.train.get_context()
    training = experiment.training
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(experiment.runtime.threads_per_worker)
    reporter = Reporter(assignment, rank)
    reporter.say("loading checkpoints")
    parts = assemble(assignment, rank, world, ray.train.torch.get_device())
    flat = flatten(experiment)
    facts = partial(Facts, num_workers=world, mlflow_run_id=assignment.mlflow_run_id, config=flat)
    kept = partial(Checkpoints, parts.state, recovery=experiment.recovery, config=flat, say=reporter.say)
    saved = kept(open_store(checkpoints(experiment)), keep=training.keep_checkpoints)
    rollback = Rollback(parts.trainer, saved, experiment.recovery.exploding, experiment.seed, reporter.went_back)
    if (resumed := saved.restore()) is not None:
        rollback.rollbacks = resumed.rollbacks
        reporter.say(f"resumed at {resumed.images} images")
    results = {"init": parts.measure.initial(parts.averaged)}
    reporter.found("init", results["init"], 0)
    reporter.started(parts.measure, parts.averaged, results["init"])
    best = Path(assignment.directory) / BEST
    guard = HackingGuard(experiment.guard, best.parent, kept(open_store(str(best)), keep=1), rank)
    guard.begin(parts.measure, parts.averaged, facts(parts.trainer.images))

    def save() -> None:
        saved.save(facts(parts.trainer.images, rollbacks=rollback.rollbacks))
        reporter.saved(saved.waited_s, parts.trainer.images)

    def evaluate() -> None:
        """Evaluate here if it is due, and was not done before an interruption."""
        images = parts.trainer.images
        if not crossed(training.grid_every_images, max(0, images - training.batch_size), images) or guard.judged(
            images
        ):
            return
        saved.finish()  # before anything that may fail: an evaluation alone can be repeated
        parts.average()
        found = parts.measure.short(parts.averaged)
        if not experiment.guard.rules:
            require_finite(f"the averaged generator at {images} images", found)
        reporter.found("training", found, images)
        ray.train.report({"images": images, **numbers(found)})
        reporter.grid(parts.measure, parts.averaged, images)
        if training.keep_best and (score := ranked(numbers(found).get(training.keep_best), "max")) > -math.inf:
            saved.rate(images, score)
        reporter.guarded(guard.judge(found, facts(images)))

    evaluate()
    while not guard.ends and parts.trainer.images < training.num_images:
        before = parts.trainer.images
        if (metrics := rollback.step()) is None:
            guard.go_back(parts.trainer.images)
            continue
        images = parts.trainer.images
        reporter.step(mean_over_ranks(metrics), images, images - before)
        saved.advance()
        stopping = any_rank(reporter.stopping())
        ended = images >= training.num_images
        evaluated = training.keep_best is not None and crossed(training.grid_every_images, before, images)
        if crossed(training.checkpoint_every_images, before, images) or evaluated or ended or stopping:
            save()
        if stopping and not ended:
            saved.finish()
            return {}
        evaluate()
    if guard.ends and saved.newest() != facts(parts.trainer.images).name:
        save()
    saved.finish()
    guard.finish()
    parts.average()
    results["aligned"] = parts.measure.aligned(parts.averaged)
    reporter.found("aligned", results["aligned"], parts.trainer.images)
    if experiment.evaluation.reference is not None:
        rival = f"reference_{experiment.evaluation.reference.steps}_steps"
        reporter.say(f"sampling the reference in {experiment.evaluation.reference.steps} steps")
        results[rival] = parts.measure.reference(rival)
        reporter.found(rival, results[rival], parts.trainer.images)
    reporter.finish(parts.measure, parts.averaged, results, parts.trainer.images)
    return results | guard.outcome | reporter.largest_stages()
