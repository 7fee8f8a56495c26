"""What the shards add up to: rows, means, win rates, distances, files and MLflow runs."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor

from slingstone import atomic, tracking
from slingstone.compare import table
from slingstone.compare.evaluator import read_shard
from slingstone.compare.shards import Shard, directory, grouped_prompts
from slingstone.config import Comparison, flatten
from slingstone.config.comparison import PromptFile
from slingstone.evaluation.protocol import Evaluation, merge
from slingstone.evaluation.set_distances import frechet_distance, kernel_distance
from slingstone.evaluation.win_rate import paired_win_rate
from slingstone.tracking.provenance import sources

TIMES = ("seconds_per_image", "network_evaluations")
"""Numbers by which no picture is better than another."""


def collect(
    comparison: Comparison, shards: Sequence[Shard], speeds: Mapping[str, Mapping[str, float]], real: Path
) -> dict[str, Any]:
    """Return all numbers: by model and set of prompts, by group, between models; and write the rows.

    Args:
        comparison: what was evaluated.
        shards: all of it.
        speeds: latency and memory by model.
        real: file with the features of the real pictures, if there are any.
    """
    parts: dict[tuple[str, str], list[Shard]] = {}
    for shard in shards:
        parts.setdefault((shard.model, shard.prompts), []).append(shard)
    merged = {key: merge([read_shard(shard) for shard in own]) for key, own in parts.items()}
    _write_rows(comparison, merged)
    sets: dict[str, Any] = {}
    for entry in comparison.prompts:
        by_model = {model.name: merged[model.name, entry.name] for model in comparison.models}
        models = {name: _numbers(found) for name, found in by_model.items()}
        if comparison.features is not None:
            features = torch.load(real, weights_only=True)
            for name in models:
                models[name] |= _distances(parts[name, entry.name], features)
        sets[entry.name] = {
            "models": models,
            "groups": _groups(entry, by_model),
            "win_rates": _win_rates(by_model),
            "pictures": len(next(iter(by_model.values())).rows),
        }
    return {
        "name": comparison.name,
        "sets": sets,
        "speed": {name: dict(found) for name, found in speeds.items()},
        "features": comparison.features and comparison.features.model_dump(mode="json"),
        "sources": sources(),
    }


def write(comparison: Comparison, summary: dict[str, Any], sheets: Mapping[str, Image]) -> None:
    """Write the table and the contact sheets."""
    atomic.write_text(directory(comparison) / "table.md", table.markdown(comparison, summary))
    with atomic.replacing(directory(comparison) / "sheets") as folder:
        folder.mkdir()
        for name, sheet in sheets.items():
            sheet.save(folder / f"{name}.png")


def track(comparison: Comparison, summary: dict[str, Any], uri: str) -> str:
    """Record a run for the comparison, with the files, and one below it for each model; return the id of the first."""
    experiment, name, storage = comparison.tracking.experiment, f"evaluate {comparison.name}", Path(comparison.storage)
    tags = {"directory": str(directory(comparison)), "kind": "evaluate"}
    whole = tracking.create_run(uri, experiment, name, flatten(comparison), tags, storage)
    for file in ("table.md", "results.parquet", "sheets"):
        whole.artifact(directory(comparison) / file, "sheets" if file == "sheets" else "")
    for model in comparison.models:
        own = {"mlflow.parentRunId": whole.run_id, "kind": "evaluate"}
        run = tracking.create_run(uri, experiment, model.name, flatten(model), own, storage)
        for prompts, found in summary["sets"].items():
            numbers = {key: value["mean"] for key, value in found["models"][model.name].items()}
            run.metrics({f"{prompts}/{key}": value for key, value in numbers.items() if value is not None}, 0)
        run.metrics(summary["speed"][model.name], 0)
        run.end("FINISHED")
    whole.end("FINISHED")
    return whole.run_id


def _numbers(evaluation: Evaluation) -> dict[str, Any]:
    return {name: found.__dict__ for name, found in evaluation.metrics.items()}


def _distances(shards: Sequence[Shard], real: Float[Tensor, "real feature"]) -> dict[str, Any]:
    """Return FID and KID of a model's pictures of a set."""
    drawn = torch.cat([torch.load(shard.features, weights_only=True) for shard in shards])
    return {
        "fid": {"mean": frechet_distance(drawn, real), "standard_error": None},
        "kid": {"mean": kernel_distance(drawn, real), "standard_error": None},
    }


def _groups(entry: PromptFile, by_model: Mapping[str, Evaluation]) -> dict[str, Any]:
    """Return the numbers of each group column's values, by model."""
    members: dict[str, dict[str, set[str]]] = {}
    for prompt, columns in grouped_prompts(entry).items():
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
    return [
        {"model": first, "against": second, "metric": name, **rate._asdict()}
        for first, second in combinations(by_model, 2)
        for name in names
        if (rate := paired_win_rate(by_model[first], by_model[second], name)) is not None
    ]


def _write_rows(comparison: Comparison, merged: Mapping[tuple[str, str], Evaluation]) -> None:
    """Write a row a picture: model, set, prompt, its groups, replica, seed, and all numbers."""
    import pyarrow
    from pyarrow import parquet

    groups = {entry.name: grouped_prompts(entry) for entry in comparison.prompts}
    rows = [
        {"model": model, "prompts": prompts, "prompt": row.prompt}
        | {column: "; ".join(values) for column, values in groups[prompts][row.prompt].items()}
        | {"replica": row.replica, "seed": row.seed, **row.values}
        for (model, prompts), evaluation in merged.items()
        for row in evaluation.rows
    ]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    whole = pyarrow.table({name: [row.get(name) for row in rows] for name in columns})
    with atomic.replacing(directory(comparison) / "results.parquet") as path:
        parquet.write_table(whole, path)
