"""The pictures of a study: its numbers, and what the generators draw."""

from pathlib import Path
from typing import Any

import torch

from slingstone.evaluation.grids import prompt_grid
from slingstone.prompts.files import read_prompts
from slingstone.worker.measure import kept_pictures
from workbench.claims.plan import Study
from workbench.claims.results import TRAINED, Results, Table, by_seed, over_seeds

COLUMNS = 7
"""Most generators on a sheet."""


def draw(results: Results, study: Study, directory: Path) -> list[Path]:
    """Draw what can be drawn of a study so far; return the files."""
    directory.mkdir(parents=True, exist_ok=True)
    files = [_numbers(results, study, directory / f"{study.name}.png"), _sheet(results, study, directory)]
    return [path for path in files if path is not None]


def _numbers(results: Results, study: Study, path: Path) -> Path | None:
    from matplotlib.figure import Figure

    rows = results.aligned(study)
    if rows[TRAINED].isna().all():
        return None
    metrics = results.plan.claims.metrics
    start, _ = over_seeds(by_seed(results.of(study), "evaluation", results.metrics))
    figure = Figure(figsize=(4.0 * len(metrics), 4.4), layout="constrained")
    for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        for arm, cells in rows.groupby("arm", sort=False):
            _line(cells, metric, axes, marker="o", linestyle="-" if study.matched else "", label=arm)
        axes.plot(
            TRAINED, metric, "k*", data=start.filter(["init"], axis="index").dropna(), markersize=10, label="init"
        )
        axes.set_xlabel(TRAINED)
        axes.set_ylabel(metric)
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=7)
    figure.suptitle(study.title)
    figure.savefig(path, dpi=100)
    return path


def _line(cells: Table, metric: str, axes: Any, **style: Any) -> None:
    """Draw one number of an arm over the trained reward: through the means, with bars of a standard error."""
    mean, error = over_seeds(by_seed(cells, "group", [TRAINED, metric]))
    mean = mean.dropna().sort_values(TRAINED)
    if len(mean):
        bars = error.loc[mean.index].fillna(0.0)
        axes.errorbar(mean[TRAINED], mean[metric], xerr=bars[TRAINED], yerr=bars[metric], capsize=3, **style)


def _sheet(results: Results, study: Study, directory: Path) -> Path | None:
    """Lay the pictures of the first seed side by side, same prompts and noise; of varied arms, the last values."""
    name = "arm" if study.matched else "group"
    shown = results.aligned(study).drop_duplicates("group").drop_duplicates(name, keep="last").set_index(name)["run"]
    columns: dict[str, torch.Tensor] = {}
    prompts: tuple[str, ...] = ()
    for name, run in shown[:COLUMNS].items():
        settings = results.plan.runs[run].evaluation
        start, found = (kept_pictures(results.plan.run_directory(run), label) for label in ("init", "aligned"))
        if start is not None and found is not None:
            count = min(results.plan.claims.sheet_prompts, len(found))
            columns = (columns or {"init": start[:count]}) | {name: found[:count]}
            prompts = read_prompts(settings.prompts, settings.column)[:count]
    if not columns:
        return None
    path = directory / f"{study.name}-pictures.png"
    prompt_grid(columns, prompts).save(path)
    return path
