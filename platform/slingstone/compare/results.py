"""What the pieces add up to: rows, means, win rates, distances, files and MLflow runs."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor
from torch.nn.functional import interpolate

from slingstone import tracking
from slingstone.compare import table
from slingstone.compare.judge import read_piece
from slingstone.compare.pieces import Piece, Plan, digest
from slingstone.config import flatten
from slingstone.evaluation.protocol import Evaluation, merge
from slingstone.evaluation.set_distances import frechet_distance, kernel_distance
from slingstone.evaluation.win_rate import paired_win_rate
from slingstone.tracking.provenance import sources

TIMES = ("seconds_per_image", "network_evaluations")
"""Numbers by which no picture is better than another."""


def collect(plan: Plan, pieces: list[Piece], speeds: Mapping[str, Mapping[str, float]], real: Path) -> dict[str, Any]:
    """Return all numbers: by model and set of prompts, by group, between models; and write the rows."""
    settings = plan.settings
    merged = {
        (model.name, prompts.name): merge(
            [read_piece(piece) for piece in pieces if (piece.model, piece.prompts) == (i, j)]
        )
        for i, model in enumerate(settings.models)
        for j, prompts in enumerate(settings.prompts)
    }
    _write_rows(plan, merged)
    real_features = torch.load(real, weights_only=True) if settings.features else None
    sets: dict[str, Any] = {}
    for j, entry in enumerate(settings.prompts):
        by_model = {model.name: merged[model.name, entry.name] for model in settings.models}
        models = {name: _numbers(found) for name, found in by_model.items()}
        if real_features is not None:
            for i, model in enumerate(settings.models):
                drawn = _features([piece for piece in pieces if (piece.model, piece.prompts) == (i, j)])
                models[model.name] |= {
                    "fid": {"mean": frechet_distance(drawn, real_features), "standard_error": None},
                    "kid": {"mean": kernel_distance(drawn, real_features), "standard_error": None},
                }
        sets[entry.name] = {
            "models": models,
            "groups": _groups(plan, j, by_model),
            "win_rates": _win_rates(by_model),
            "pictures": len(next(iter(by_model.values())).rows),
        }
    return {
        "name": settings.name,
        "sets": sets,
        "speed": {name: dict(found) for name, found in speeds.items()},
        "features": settings.features and settings.features.model_dump(mode="json"),
        "sources": sources(),
    }


def write(plan: Plan, summary: dict[str, Any], sheets: Mapping[str, Image]) -> None:
    """Write the table and the contact sheets."""
    (plan.directory / "table.md").write_text(table.markdown(plan.settings, summary))
    folder = plan.directory / "sheets"
    folder.mkdir(parents=True, exist_ok=True)
    for name, sheet in sheets.items():
        sheet.save(folder / f"{name}.png")


def track(plan: Plan, summary: dict[str, Any], uri: str) -> str:
    """Record a run for the evaluation, with the files, and one below it for each model; return the id of the first."""
    settings = plan.settings
    remote = settings.tracking.uri or "MLFLOW_TRACKING_URI" in os.environ
    artifacts = None if remote else Path(settings.storage)
    tags = {"directory": str(plan.directory), "kind": "evaluate"}
    name = f"evaluate {settings.name}"
    whole = tracking.create_run(uri, settings.tracking.experiment, name, flatten(settings), tags, artifacts)
    for file in ("table.md", "results.parquet", "sheets"):
        whole.artifact(plan.directory / file, "sheets" if file == "sheets" else "")
    for model in settings.models:
        own = {"mlflow.parentRunId": whole.run_id, "kind": "evaluate"}
        run = tracking.create_run(uri, settings.tracking.experiment, model.name, flatten(model), own, artifacts)
        for prompts, found in summary["sets"].items():
            numbers = {key: value["mean"] for key, value in found["models"][model.name].items()}
            run.metrics({f"{prompts}/{key}": value for key, value in numbers.items() if value is not None}, 0)
        run.metrics(summary["speed"][model.name], 0)
        run.end("FINISHED")
    whole.end("FINISHED")
    return whole.run_id


def sheet_path(plan: Plan, model: int, prompts: list[str]) -> Path:
    """Return where a model's pictures of some prompts are kept."""
    return plan.kept(model) / f"sheet-{digest(prompts)}.pt"


def one_size(
    columns: Mapping[str, Float[Tensor, "_ 3 _ _"]],
) -> dict[str, Float[Tensor, "batch 3 rows columns"]]:
    """Return pictures of several models in the size of the largest."""
    side = max(images.shape[-1] for images in columns.values())
    return {
        name: images if images.shape[-1] == side else interpolate(images, (side, side), mode="nearest")
        for name, images in columns.items()
    }


def _numbers(evaluation: Evaluation) -> dict[str, Any]:
    return {name: found.__dict__ for name, found in evaluation.metrics.items()}


def _groups(plan: Plan, place: int, by_model: Mapping[str, Evaluation]) -> dict[str, Any]:
    """Return the numbers of each group column's values, by model."""
    known = plan.prompt_set(plan.settings.prompts[place]).groups
    members: dict[str, dict[str, set[str]]] = {}
    for prompt, columns in known.items():
        for column, values in columns.items():
            for value in values:
                members.setdefault(column, {}).setdefault(value, set()).add(prompt)
    return {
        column: {
            value: {name: _numbers(found.of(prompts)) for name, found in by_model.items()}
            for value, prompts in sorted(values.items())
        }
        for column, values in members.items()
    }


def _win_rates(by_model: Mapping[str, Evaluation]) -> list[dict[str, Any]]:
    """Return every pair of models under every number by which pictures can be better."""
    names = [name for name in next(iter(by_model.values())).metrics if name not in TIMES]
    models = list(by_model)
    rates = []
    for i, first in enumerate(models):
        for second in models[i + 1 :]:
            for name in names:
                if (rate := paired_win_rate(by_model[first], by_model[second], name)) is not None:
                    rates.append({"model": first, "against": second, "metric": name, **rate._asdict()})
    return rates


def _features(pieces: list[Piece]) -> Float[Tensor, "picture feature"]:
    return torch.cat([torch.load(Path(piece.path).with_suffix(".pt"), weights_only=True) for piece in pieces])


def _write_rows(plan: Plan, merged: Mapping[tuple[str, str], Evaluation]) -> None:
    """Write a row a picture: model, set, prompt, its groups, replica, seed, and all numbers."""
    import pyarrow
    from pyarrow import parquet

    groups = {entry.name: plan.prompt_set(entry).groups for entry in plan.settings.prompts}
    rows = [
        {"model": model, "prompts": prompts, "prompt": row.prompt}
        | {column: "; ".join(values) for column, values in groups[prompts][row.prompt].items()}
        | {"replica": row.replica, "seed": row.seed, **row.values}
        for (model, prompts), evaluation in merged.items()
        for row in evaluation.rows
    ]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    whole = pyarrow.table({name: [row.get(name) for row in rows] for name in columns})
    plan.directory.mkdir(parents=True, exist_ok=True)
    parquet.write_table(whole, plan.directory / "results.parquet")
