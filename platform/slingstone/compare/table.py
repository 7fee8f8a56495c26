"""An evaluation as tables for people, in the paper's layout, with its numbers beside ours."""

from collections.abc import Mapping, Sequence
from typing import Any

from slingstone.compare import published_scores
from slingstone.compare.published_scores import Published
from slingstone.config import Comparison
from slingstone.config.comparison import PromptFile, Stock

HIDDEN = ("network_evaluations",)


def markdown(settings: Comparison, summary: dict[str, Any]) -> str:
    """Return all tables: per set of prompts the models, the paper's, the groups and the win rates; then speed."""
    parts = [f"# {settings.name}"]
    for entry in settings.prompts:
        found = summary["sets"][entry.name]
        parts += [f"## {entry.name}", f"{found['pictures']} pictures a model; mean ± standard error over prompts."]
        parts += _published(settings, entry, summary)
        parts += [_models(settings, found["models"])]
        if summary["features"]:
            features = summary["features"]
            parts.append(
                f"FID and KID: {features['kind']} features of `{features['checkpoint']}` "
                f"against the pictures in `{features['images']}`."
            )
        for column, values in found["groups"].items():
            parts += [f"### {entry.name} by {column}", _group(settings, values)]
        if found["win_rates"]:
            parts += [f"### {entry.name}: paired win rates", _wins(found["win_rates"])]
    if any(summary["speed"].values()):
        parts += ["## Latency and memory", "Warm calls, text encoding included, nothing else running.", _speed(summary)]
    return "\n\n".join(parts) + "\n"


def _models(settings: Comparison, models: Mapping[str, Any]) -> str:
    names = [name for name in next(iter(models.values())) if name not in HIDDEN]
    rows = [["model", "steps", "params", *(name.removeprefix("rewards/") for name in names)]]
    for entry in settings.models:
        cells = [_cell(models[entry.name][name]) for name in names]
        rows.append([entry.name, _steps(entry), entry.parameters or "", *cells])
    return _table(rows)


def _published(settings: Comparison, entry: PromptFile, summary: dict[str, Any]) -> list[str]:
    """Return the paper's table with our models below its rows."""
    if entry.published is None:
        return []
    kinds = {service.model: f"rewards/{service.name}" for service in settings.rewards.services}
    found = summary["sets"][entry.name]
    if entry.published == "parti":
        names = [kinds.get(kind) for kind in published_scores.PARTI_COLUMNS]
        headings = [*published_scores.PARTI_COLUMNS.values(), "s / 10 images"]
        columns = {name: [found["models"][name].get(key or "") for key in names] for name in found["models"]}
        speed = {name: own.get("latency/seconds_per_image_batch_1") for name, own in summary["speed"].items()}
        theirs = [_row(row, [*row.scores, row.seconds_per_10_images]) for row in published_scores.PARTI]
        last = {name: "" if (one := speed.get(name)) is None else f"{10 * one:.2f}" for name in columns}
    else:
        styles = found["groups"].get("style", {})
        key = kinds.get("hps", "")
        headings = [*published_scores.HPSV2_STYLES.values(), "average"]
        columns = {
            name: [styles.get(style, {}).get(name, {}).get(key) for style in published_scores.HPSV2_STYLES]
            for name in found["models"]
        }
        theirs = [_row(row, row.scores) for row in published_scores.HPSV2]
        last = {name: _cell(found["models"][name].get(key)) for name in columns}
    rows = [["model", "steps", "params", *headings], *theirs]
    for model in settings.models:
        cells = [_cell(number) for number in columns[model.name]]
        rows.append([f"**{model.name}**", _steps(model), model.parameters or "", *cells, last[model.name]])
    note = f"† the authors' numbers ({published_scores.SOURCE}), of another harness: compare with ours only in kind."
    return [_table(rows), note]


def _row(row: Published, cells: Sequence[str]) -> list[str]:
    return [f"{row.model} †", str(row.steps), row.parameters, *cells]


def _group(settings: Comparison, values: Mapping[str, Any]) -> str:
    first = next(iter(next(iter(values.values())).values()))
    names = [name for name in first if name.startswith("rewards/") or name in ("utility", "caption_accuracy")]
    rows = [["", "model", *(name.removeprefix("rewards/") for name in names)]]
    for value, models in values.items():
        rows += [[value, entry.name, *(_cell(models[entry.name][name]) for name in names)] for entry in settings.models]
    return _table(rows)


def _wins(rates: Sequence[Mapping[str, Any]]) -> str:
    rows = [["", "beats", "by", "win rate", "95 % bootstrap interval", "prompts"]]
    for rate in rates:
        share, low, high = (f"{100 * rate[name]:.1f} %" for name in ("rate", "low", "high"))
        metric = rate["metric"].removeprefix("rewards/")
        rows.append([rate["model"], rate["against"], metric, share, f"{low} to {high}", str(rate["prompts"])])
    return _table(rows)


def _speed(summary: Mapping[str, Any]) -> str:
    names = list(next(iter(summary["speed"].values())))
    rows = [["model", *(name.removeprefix("latency/").replace("_", " ") for name in names)]]
    rows += [[model, *(f"{own[name]:.4g}" for name in names)] for model, own in summary["speed"].items()]
    return _table(rows)


def _steps(entry: Any) -> str:
    return str(entry.steps) if isinstance(entry, Stock) else "1"


def _cell(number: Mapping[str, Any] | None) -> str:
    if number is None or number["mean"] is None:
        return ""
    error = number["standard_error"]
    return f"{number['mean']:.4g}" + ("" if error is None else f" ± {error:.2g}")


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
