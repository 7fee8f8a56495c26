"""The pictures of a study: its numbers, and what the generators draw."""

from pathlib import Path
from typing import Any

import torch

from slingstone.evaluation.grids import prompt_grid
from slingstone.prompts.files import read_prompts
from slingstone.worker.measure import kept_pictures
from workbench.claims.plan import Study
from workbench.claims.results import TRAINED, Results

COLUMNS = 7
"""Most generators on a sheet."""


def draw(results: Results, study: Study, directory: Path) -> list[Path]:
    """Draw what can be drawn of a study so far; return the files."""
    directory.mkdir(parents=True, exist_ok=True)
    files = [_numbers(results, study, directory / f"{study.name}.png"), _sheet(results, study, directory)]
    return [path for path in files if path is not None]


def _numbers(results: Results, study: Study, path: Path) -> Path | None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = {name: cells for name, cells in results.groups(study).items() if results.mean(cells, TRAINED)}
    if not groups:
        return None
    metrics = results.metrics[1:]
    figure = Figure(figsize=(4.0 * len(metrics), 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        _panel(results, study, groups, metric, axes)
        start = [results.mean(results.cells(study), name, "init") for name in (TRAINED, metric)]
        if start[0] and start[1]:
            axes.plot([start[0].mean], [start[1].mean], "k*", markersize=10, label="init")
        axes.set_xlabel(TRAINED)
        axes.set_ylabel(metric)
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=7)
    figure.suptitle(study.title)
    figure.savefig(path, dpi=100)
    return path


def _panel(results: Results, study: Study, groups: dict[str, Any], metric: str, axes: Any) -> None:
    """Draw one number over the trained reward: a line an arm through the means, bars of a standard error."""
    arms: dict[str, list[Any]] = {}
    for cells in groups.values():
        arms.setdefault(cells[0].arm, []).append((results.mean(cells, TRAINED), results.mean(cells, metric)))
    for arm, points in arms.items():
        known = sorted((x, y) for x, y in points if x is not None and y is not None)
        axes.errorbar(
            [x.mean for x, _ in known],
            [y.mean for _, y in known],
            xerr=[x.error or 0.0 for x, _ in known],
            yerr=[y.error or 0.0 for _, y in known],
            marker="o",
            linestyle="-" if study.matched else "",
            capsize=3,
            label=arm,
        )


def _sheet(results: Results, study: Study, directory: Path) -> Path | None:
    """Lay the pictures of the first seed side by side, same prompts and noise; of varied arms, the last values."""
    last = {cells[0].arm if study.matched else name: cells[0] for name, cells in results.groups(study).items()}
    columns: dict[str, torch.Tensor] = {}
    prompts: tuple[str, ...] = ()
    for name, cell in list(last.items())[:COLUMNS]:
        directory_of_run, settings = results.plan.run_directory(cell.run), results.plan.runs[cell.run].evaluation
        start, found = (kept_pictures(directory_of_run, label) for label in ("init", "aligned"))
        if start is not None and found is not None:
            count = min(results.plan.claims.sheet_prompts, len(found))
            columns = (columns or {"init": start[:count]}) | {name: found[:count]}
            prompts = read_prompts(settings.prompts, settings.column)[:count]
    if not columns:
        return None
    path = directory / f"{study.name}-pictures.png"
    prompt_grid(columns, prompts).save(path)
    return path
