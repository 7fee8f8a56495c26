"""From any checkpoint of a run to a directory that diffusers loads, with its model card; ONNX and the hub if asked."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from slingstone import atomic
from slingstone.checkpoints.run_directory import BEST, checkpoints
from slingstone.checkpoints.store import Store, open_store, read_manifest
from slingstone.config import Experiment, load, paths
from slingstone.engines.engine import trained
from slingstone.engines.family import load_family
from slingstone.engines.saved_weights import Weights, saved_weights
from slingstone.evaluation.table import evaluations
from slingstone.export.model_card import Provenance, model_card
from slingstone.export.onnx_file import write_onnx
from slingstone.networks.protocol import DTYPES, ModelFamily


@dataclass(frozen=True)
class Request:
    """What to export, and how.

    Attributes:
        directory: of the run, `<storage>/align/<name>`.
        checkpoint: name of one of the run's checkpoints; None is the latest.
        weights: the average, or the weights as they were stepped.
    """

    directory: Path
    target: Path
    checkpoint: str | None = None
    weights: Weights = "ema"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    onnx: bool = False


def export(request: Request, say: Callable[[str], None]) -> ModelFamily:
    """Write the export; return the family whose generator holds the exported weights.

    Raises:
        ValueError: naming what is missing in the run's directory, or that the target holds something else.
    """
    if request.target.exists() and not (request.target / "model_index.json").is_file() and _holds(request.target):
        raise ValueError(f"{request.target}: holds something else than an export; name another directory, or empty it")
    experiment = _experiment_of(request.directory)
    store = _states(request, experiment)
    names = store.names()
    name = next(reversed(names), "") if request.checkpoint is None else request.checkpoint
    if name not in names:
        there = ", ".join(names) or "none"
        raise ValueError(f"run {str(request.directory)!r} has no checkpoint {name}; there is {there}")
    say(f"exporting {request.weights} weights of checkpoint {name}")
    family = load_family(experiment, torch.device("cpu"))
    shapes = {name: weight.shape for name, weight in trained(family.generator).items()}
    with store.opened(name) as checkpoint:
        manifest = read_manifest(store, name)
        manifest.check(checkpoint, sorted(manifest.files))
        weights = saved_weights(checkpoint, request.weights, shapes)
    family.generator.load_state_dict(weights, strict=False)
    family.generator.requires_grad_(False).eval()
    card = model_card(experiment, _provenance(request, manifest.facts.images))
    with atomic.replacing(request.target) as target:  # nothing of an older export stays
        family.pipeline.save(family.generator, target, DTYPES[request.precision])
        (target / "README.md").write_text(card, encoding="utf-8")
        if request.onnx:
            say(f"ONNX differs from torch by {write_onnx(family, target / 'onnx'):.1e} at most")
    say(f"pipeline  {request.target}")
    return family


def _states(request: Request, experiment: Experiment) -> Store:
    """Return where the asked-for state lies: the best one has a store of its own, and is what the guard returned to."""
    if request.checkpoint is None and _returned_to(_read(request, "summary.json")) is not None:
        return open_store(str(request.directory / BEST))
    storage = str(request.directory.absolute().parents[1])  # which may have been moved since the run
    return open_store(checkpoints(experiment.model_copy(update={"storage": storage})))


def _returned_to(summary: dict[str, Any]) -> int | None:
    """Return the images of the state that the guard of a finished run returned to, if it did."""
    return summary.get("guard", {}).get("best_images")


def _read(request: Request, name: str) -> dict[str, Any]:
    return atomic.read_json(request.directory / name) or {}


def _holds(target: Path) -> bool:
    return target.is_file() or any(target.iterdir())


def _experiment_of(directory: Path) -> Experiment:
    file = directory / "config.yaml"
    if not file.is_file():
        raise ValueError(f"run {str(directory)!r} has no config.yaml; give <storage>/align/<name> of a run")
    experiment = load(file)
    return experiment.model_copy(update={"models": paths.resolved(experiment.models)})


def _provenance(request: Request, images: int) -> Provenance:
    """Return what the run's directory says about a state of its weights."""
    summary = _read(request, "summary.json")
    # The numbers are the average's, at the end of the run.
    best = _returned_to(summary)
    measured = request.weights == "ema" and images == (summary.get("images") if best is None else best)
    return Provenance(images, request.weights, _read(request, "sources.json"), evaluations(summary) if measured else {})
