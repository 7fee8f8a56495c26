"""A comparison as tables for people, in the paper's layout, with its numbers beside ours."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from slingstone.config import Comparison
from slingstone.config.comparison import Model, PromptFile, Stock
from slingstone.evaluation.table import markdown_table
from slingstone.plan.cut_prompts import told


def markdown(comparison: Comparison, summary: dict[str, Any]) -> str:
    """Return all tables: per set of prompts the models, the paper's, the groups and the win rates; then speed."""
    parts = [f"# {comparison.name}"]
    for entry in comparison.prompts:
        found = summary["sets"][entry.name]
        parts += [f"## {entry.name}", f"{found['pictures']} pictures a model; mean ± standard error over prompts."]
        parts += _published(comparison, entry, summary)
        parts += [_models(comparison, found["models"])]
        if summary["features"]:
            features = summary["features"]
            parts.append(
                f"FID and KID: {features['kind']} features of `{features['checkpoint']}` "
                f"against the pictures in `{features['images']}`."
            )
        for column, values in found["groups"].items():
            parts += [f"### {entry.name} by {column}", _group(comparison, values)]
        if found["win_rates"]:
            parts += [f"### {entry.name}: paired win rates", _wins(found["win_rates"])]
    if any(summary["speed"].values()):
        parts += ["## Latency and memory", "Warm calls, text encoding included, nothing else running.", _speed(summary)]
    if summary.get("cut_prompts"):
        heading, *lines = told(summary["cut_prompts"])
        parts.append("\n".join([f"{heading.capitalize()}", "", *(f"* {line.strip()}" for line in lines)]).strip())
    return "\n\n".join(parts) + "\n"


def _models(comparison: Comparison, models: Mapping[str, Any]) -> str:
    names = [name for name in next(iter(models.values())) if name != "network_evaluations"]
    rows = [["model", "steps", "params", *(name.removeprefix("rewards/") for name in names)]]
    for entry in comparison.models:
        cells = [_cell(models[entry.name][name]) for name in names]
        rows.append([entry.name, *_size(entry), *cells])
    return markdown_table(rows)


def _published(comparison: Comparison, entry: PromptFile, summary: dict[str, Any]) -> list[str]:
    """Return the paper's table with our models below its rows."""
    if entry.published is None:
        return []
    published = published_scores()
    theirs, found = published[entry.published], summary["sets"][entry.name]
    names = {service.model: f"rewards/{service.name}" for service in comparison.rewards.services}

    def ours(model: str) -> list[str]:
        if entry.published == "parti":
            scores = [found["models"][model].get(names.get(kind)) for kind in theirs["headings"]]
            seconds = summary["speed"][model].get("latency/seconds_per_image_batch_1")
            return [*map(_cell, scores), "" if seconds is None else f"{10 * seconds:.2f}"]
        styles = [found["groups"].get("style", {}).get(style, {}) for style in theirs["headings"]]
        every = [*(models.get(model, {}) for models in styles), found["models"][model]]
        return [_cell(numbers.get(names.get("hps"))) for numbers in every]

    rows = [["model", "steps", "params", *theirs["headings"].values(), theirs["last"]]]
    rows += [[f"{model} †", *cells] for model, *cells in theirs["rows"]]
    rows += [[f"**{model.name}**", *_size(model), *ours(model.name)] for model in comparison.models]
    note = f"† the authors' numbers ({published['source']}), of another harness: compare with ours only in kind."
    return [markdown_table(rows), note]


def published_scores() -> dict[str, Any]:
    """Return the paper's tables, by the names that `prompts.<name>.published` gives them."""
    return yaml.safe_load((Path(__file__).parent / "published_scores.yaml").read_text())


def _group(comparison: Comparison, values: Mapping[str, Any]) -> str:
    first = next(iter(next(iter(values.values())).values()))
    names = [name for name in first if name.startswith("rewards/") or name in ("utility", "caption_accuracy")]
    rows = [["", "model", *(name.removeprefix("rewards/") for name in names)]]
    for value, models in values.items():
        rows += [
            [value, entry.name, *(_cell(models[entry.name][name]) for name in names)] for entry in comparison.models
        ]
    return markdown_table(rows)


def _wins(rates: Sequence[Mapping[str, Any]]) -> str:
    rows = [["", "beats", "by", "win rate", "95 % bootstrap interval", "prompts"]]
    for rate in rates:
        share, low, high = (f"{100 * rate[name]:.1f} %" for name in ("rate", "low", "high"))
        metric = rate["metric"].removeprefix("rewards/")
        rows.append([rate["model"], rate["against"], metric, share, f"{low} to {high}", str(rate["prompts"])])
    return markdown_table(rows)


def _speed(summary: Mapping[str, Any]) -> str:
    names = list(next(iter(summary["speed"].values())))
    rows = [["model", *(name.removeprefix("latency/").replace("_", " ") for name in names)]]
    rows += [[model, *(f"{own[name]:.4g}" for name in names)] for model, own in summary["speed"].items()]
    return markdown_table(rows)


def _size(model: Model) -> tuple[str, str]:
    return str(model.steps) if isinstance(model, Stock) else "1", model.parameters or ""


def _cell(number: Mapping[str, Any] | None) -> str:
    if number is None or number["mean"] is None:
        return ""
    error = number["standard_error"]
    return f"{number['mean']:.4g}" + ("" if error is None else f" ± {error:.2g}")
