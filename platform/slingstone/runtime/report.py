"""What rank 0 tells the user and MLflow; other ranks keep quiet."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import nn

from slingstone.runtime.assignment import Assignment
from slingstone.runtime.card import Provenance, model_card
from slingstone.runtime.measure import Measure
from slingstone.runtime.progress import Progress
from slingstone.runtime.tracking import Run, git_commit, lock_hash


class Reporter:
    """Lines for the user's terminal, numbers and pictures for MLflow."""

    def __init__(self, assignment: Assignment, rank: int) -> None:
        self._board = assignment.board
        self._quiet = rank > 0
        self._experiment = assignment.experiment
        self._directory = Path(assignment.directory)
        self._run = Run(assignment.mlflow_uri, assignment.mlflow_run_id)
        self._progress = Progress(self.say, assignment.experiment.training.num_images)

    def say(self, line: str) -> None:
        """Show a line to the user."""
        if not self._quiet:
            self._board.say.remote(line)

    def step(self, metrics: Mapping[str, float], images: int, num_images: int) -> None:
        """Take note of a step of `num_images` images."""
        if not self._quiet:
            self._progress.step(metrics, images, num_images)
            self._run.metrics({name: value for name, value in metrics.items() if name != "images"}, images)

    def found(self, label: str, summary: Mapping[str, Any], images: int) -> None:
        """Take note of an evaluation: `init`, `training` for the short ones on the way, `aligned`, the rival's."""
        if not self._quiet:
            title = f"at {images} images" if label == "training" else label.replace("_", " ")
            self._progress.found(title, summary)
            self._run.metrics({f"{label}/{name}": value for name, value in numbers(summary).items()}, images)
            self._run.flush()

    def grid(self, measure: Measure, generator: nn.Module, images: int) -> None:
        """Draw the prompt grid of the averaged generator beside the initial one."""
        if not self._quiet:
            self._picture(measure.grid_now(f"{images} images", generator), f"grid_{images:09}.png")

    def finish(self, measure: Measure, generator: nn.Module, results: Mapping[str, Any]) -> None:
        """Draw the final grid and export the aligned generator as a pipeline with its model card."""
        if not self._quiet:
            self._picture(measure.grid({label: label.replace("_", " ") for label in results}), "grid.png")
            exported = self._directory / "pipeline"
            measure.family.pipeline.save(generator, exported, torch.float32)
            run = self._experiment
            of = Provenance(
                run.training.num_images, "ema", {"git_commit": git_commit(), "lock_sha256": lock_hash()}, results
            )
            (exported / "README.md").write_text(model_card(run, of), encoding="utf-8")
            self._run.artifact(exported, "pipeline")
            self._run.flush()

    def _picture(self, picture: Image, name: str) -> None:
        path = self._directory / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
        self._run.artifact(path, "pictures")


def numbers(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return a summary's means as flat metrics: `rewards/<name>`, and the others by their own names."""
    own = {name: float(value) for name, value in summary.items() if isinstance(value, int | float)}
    return {f"rewards/{name}": float(value) for name, value in summary["rewards"].items()} | own
