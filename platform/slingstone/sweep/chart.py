"""The Pareto picture: what is trained on against what is not."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slingstone.config import Sweep
from slingstone.sweep.table import metrics_of


def draw(sweep: Sweep, trained: Mapping[str, float], complete: Sequence[dict[str, Any]], best: str, path: Path) -> None:
    """Draw the complete trials, the trained reward across, a panel for the signal and each objective.

    Args:
        sweep: names the numbers.
        trained: weights of the rewards that are trained on.
        complete: the trials, `pareto` set where no other beats them.
        best: name of the recommended one.
        path: of the PNG file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = {f"rewards/{name}": weight for name, weight in trained.items()}
    metrics = [name for name in metrics_of(sweep) if name not in names] or [sweep.signal.metric]
    across = [sum(weight * trial["metrics"][name] for name, weight in names.items()) for trial in complete]
    figure = Figure(figsize=(4.6 * len(metrics), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        up = [trial["metrics"][metric] for trial in complete]
        colours = ["tab:blue" if trial["pareto"] else "lightgray" for trial in complete]
        axes.scatter(across, up, c=colours, edgecolors="black", linewidths=0.5)
        for x, y, trial in zip(across, up, complete, strict=True):
            axes.annotate(trial["name"][-5:], (x, y), fontsize=7, xytext=(3, 3), textcoords="offset points")
            if trial["name"] == best:
                axes.scatter([x], [y], s=160, facecolors="none", edgecolors="tab:red", label="recommended")
        axes.set_xlabel("trained reward: " + " + ".join(f"{weight:g} {name}" for name, weight in trained.items()))
        axes.set_ylabel(f"{metric} (held out)" if metric == sweep.signal.metric else metric)
        axes.legend(loc="best", fontsize=8)
    figure.suptitle(f"{sweep.name}: blue trials are beaten by no other in all objectives")
    figure.savefig(path, dpi=110)
