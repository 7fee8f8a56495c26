"""What rank 0 tells the user and MLflow; other ranks keep quiet."""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray.train.torch
import torch
from PIL.Image import Image
from torch import nn

from reward_services.identity import identity
from slingstone import atomic
from slingstone.config import Experiment
from slingstone.evaluation.table import numbers
from slingstone.export.model_card import Provenance, model_card
from slingstone.export.registry import known, publish, register
from slingstone.tracking.provenance import sources
from slingstone.worker.assignment import Assignment
from slingstone.worker.contact import Contact
from slingstone.worker.guard import Decision
from slingstone.worker.measure import Measure
from slingstone.worker.progress import Progress
from slingstone.worker.throughput import Throughput


class Reporter(Contact):
    """Lines for the user's terminal, numbers and pictures for MLflow."""

    def __init__(self, assignment: Assignment[Experiment], rank: int) -> None:
        super().__init__(assignment, rank)
        self._experiment = assignment.experiment
        rewards, trains = self._experiment.rewards.services, self._experiment.objective.reward_weight > 0
        held_out = [entry.name for entry in rewards if entry.weight == 0 or not trains]
        self._progress = Progress(self.say, self._experiment.training.num_images, held_out)
        self._throughput = None if self._quiet else Throughput(self._experiment, ray.train.torch.get_device())

    def step(self, metrics: Mapping[str, float], images: int, num_images: int) -> None:
        """Take note of a step of `num_images` images."""
        if self._throughput is not None:
            self._progress.step(metrics, images, num_images)
            named = {name: value for name, value in metrics.items() if name != "images"}
            self._run.metrics(named | self._throughput.of(metrics, num_images), images)

    def largest_stages(self) -> dict[str, dict[str, float]]:
        """Return the parts of a step that took longest since this worker started, as shares, for summary.json."""
        return {} if self._throughput is None else {"largest_stages": self._throughput.largest()}

    def went_back(self, reason: str, images: int) -> None:
        """Take note of a return to an earlier position."""
        if not self._quiet:
            self.say(f"{reason}: back to {images} images, on with other noise")
            self._run.journal.go_back(images)

    def found(self, label: str, summary: Mapping[str, Any], images: int) -> None:
        """Take note of an evaluation: `init`, `training` for the short ones on the way, `aligned`, the rival's."""
        if not self._quiet:
            title = {"training": str(images), "init": "initial"}.get(
                label, label.removesuffix("_steps").replace("_", " ")
            )
            self._progress.found(title, summary)
            self._run.metrics({f"{label}/{name}": value for name, value in numbers(summary).items()}, images)
            self._run.flush()

    def guarded(self, decision: Decision) -> Decision:
        """Tell what the guard decided, unless nothing is wrong; return it."""
        if not self._quiet and decision.action != "go_on":
            self.say(str(decision))
            self._run.metrics({"guard/broken_rules": float(len(decision.breaches))}, decision.images)
            self._run.tag("guard", str(decision))
        return decision

    def grid(self, measure: Measure, generator: nn.Module, images: int) -> None:
        """Draw the prompt grid of the averaged generator beside the initial one."""
        if not self._quiet:
            picture = measure.grid(["init"], {f"{images} images": generator})
            self._picture(picture, f"grid_{images:09}.png")
            self._run.picture(picture, "grid", images)

    def finish(self, measure: Measure, generator: nn.Module, results: Mapping[str, Any], images: int) -> None:
        """Draw the final grid and export the generator, after so many images, as a pipeline with its model card."""
        if not self._quiet:
            self._picture(measure.grid(results), "grid.png")
            exported = self._directory / "pipeline"
            card = model_card(self._experiment, Provenance(images, "ema", sources(), results))
            with atomic.replacing(exported) as directory:
                measure.family.pipeline.save(generator, directory, torch.float32)
                (directory / "README.md").write_text(card, encoding="utf-8")
            self._upload(exported, results["aligned"], initial=False)
            if not self._run.flush():
                self.say(f"MLflow cannot be reached: its numbers wait in {self._directory}")

    def started(self, measure: Measure, generator: nn.Module, found: Mapping[str, Any]) -> None:
        """Register the initial generator, if there is a registry that does not have it yet."""
        registry, start = self._experiment.tracking.registry, self._experiment.models.generator
        if self._quiet or registry is None or known(self._run, registry, "init", "generator", start):
            return
        with tempfile.TemporaryDirectory() as directory:
            exported = Path(directory) / "initial_pipeline"
            measure.family.pipeline.save(generator, exported, torch.float32)
            self._upload(exported, found, initial=True)

    def _upload(self, exported: Path, found: Mapping[str, Any], initial: bool) -> None:
        registry, folder = self._experiment.tracking.registry, exported.name
        if registry is None:
            self._run.artifact(exported, folder)
            return
        publish(self._run, exported, folder)
        tags = {"generator": self._experiment.models.generator, "evaluation": digest(self._experiment)}
        version = register(self._run, registry, folder, numbers(found), tags, initial)
        self.say(f"registered {'the initial' if initial else 'the aligned'} pipeline as {registry.name}/{version}")

    def _picture(self, picture: Image, name: str) -> None:
        path = self._directory / "pictures" / name
        with atomic.replacing(path) as partial:
            picture.save(partial)
        self._run.artifact(path, "pictures")


def digest(experiment: Experiment) -> str:
    """Return what is equal for runs whose evaluations may be compared: prompts, seeds, rewards and their judges."""
    judges = {entry.name: identity(entry) for entry in experiment.rewards.services}
    settings = experiment.evaluation.model_dump(exclude={"reference", "grid_prompts"})
    return hashlib.sha256(json.dumps([settings, judges], sort_keys=True).encode()).hexdigest()[:16]
