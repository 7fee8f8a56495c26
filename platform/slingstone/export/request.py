"""From any checkpoint of a run to a directory that diffusers loads, with its model card; ONNX and the hub if asked."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from slingstone.checkpoints.manifest import Manifest
from slingstone.checkpoints.run_directory import checkpoints
from slingstone.checkpoints.state import facts_of
from slingstone.checkpoints.store import open_store
from slingstone.config import Experiment, load, paths
from slingstone.engines.family import load_family
from slingstone.engines.saved_weights import Weights, saved_weights
from slingstone.export.model_card import Provenance, model_card
from slingstone.export.onnx_file import OnnxCheck, write_onnx
from slingstone.networks.protocol import DTYPES, ModelFamily

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Request:
    """What to export, and how.

    Attributes:
        directory: of the run, `<storage>/align/<name>`.
        target: directory to write.
        checkpoint: name of one of the run's checkpoints; None is the latest.
        weights: the average, or the weights as they were stepped.
        precision: of the files.
        onnx: write generator and decoder as ONNX, too.
    """

    directory: Path
    target: Path
    checkpoint: str | None = None
    weights: Weights = "ema"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    onnx: bool = False


def export(asked: Request, say: Callable[[str], None]) -> ModelFamily:
    """Write the export; return the family whose generator holds the exported weights.

    Raises:
        ValueError: naming what is missing in the run's directory.
    """
    experiment = _run_of(asked.directory)
    store = open_store(
        checkpoints(experiment.model_copy(update={"storage": str(asked.directory.absolute().parents[1])}))
    )
    name = chosen_checkpoint(asked.directory, store.names(), asked.checkpoint)
    say(f"exporting {asked.weights} weights of checkpoint {name}")
    # In fp32 whatever the run's precision was: the file's precision is asked for apart.
    family = load_family(
        experiment.model_copy(update={"runtime": experiment.runtime.model_copy(update={"precision": "fp32"})}), CPU
    )
    shapes = {name: weight.shape for name, weight in family.generator.named_parameters() if weight.requires_grad}
    with store.opened(name) as checkpoint:
        manifest = Manifest.from_json(store.manifest(name), name)
        manifest.check(checkpoint, sorted(manifest.files))
        weights = saved_weights(checkpoint, asked.weights, shapes)
    family.generator.load_state_dict(weights, strict=False)
    family.generator.requires_grad_(False).eval()
    family.pipeline.save(family.generator, asked.target, DTYPES[asked.precision])
    card = model_card(experiment, _provenance(asked, facts_of(manifest, name).images))
    (asked.target / "README.md").write_text(card, encoding="utf-8")
    if asked.onnx:
        check: OnnxCheck = write_onnx(family, asked.target / "onnx")
        say(f"ONNX differs from torch by {check.difference:.1e} at most")
    say(f"pipeline  {asked.target}")
    return family


def chosen_checkpoint(directory: Path, there: Sequence[str], name: str | None) -> str:
    """Return the named checkpoint of a run, or its latest, of those that are there, oldest first.

    Raises:
        ValueError: if there is none.
    """
    if there and name is None:
        return there[-1]
    if name in there:
        return str(name)
    known = ", ".join(there) or "none"
    raise ValueError(f"run {str(directory)!r} has no checkpoint {name or ''}; there is {known}")


def _run_of(directory: Path) -> Experiment:
    file = directory / "config.yaml"
    if not file.is_file():
        raise ValueError(f"run {str(directory)!r} has no config.yaml; give <storage>/align/<name> of a run")
    experiment = load(file)
    return experiment.model_copy(update={"models": paths.located_models(experiment.models)})


def _provenance(asked: Request, images: int) -> Provenance:
    """Return what the run's directory says about a state of its weights."""

    def read(name: str) -> dict[str, Any]:
        path = asked.directory / name
        return json.loads(path.read_text()) if path.is_file() else {}

    summary = read("summary.json")
    results = {name: found for name, found in summary.items() if isinstance(found, dict)}
    # The numbers are the average's, at the end of the run.
    measured = asked.weights == "ema" and summary.get("images") == images
    return Provenance(images, asked.weights, read("sources.json"), results if measured else {})
