"""Tables as text, and evaluations side by side in one."""

from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

SHOWN = {
    "utility": "utility",
    "caption_accuracy": "caption accuracy",
    "accuracy/one_object": "  of one object",
    "accuracy/two_objects": "  of two objects",
    "diversity": "diversity",
    "seconds_per_image": "seconds per image",
    "network_evaluations": "network evaluations",
}
"""Rows of the final table under the rewards, where the evaluations have them: metric and title."""


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as a Markdown table, the first of them its header; a `|` in a cell becomes `/`."""
    cells = [[cell.replace("|", "/") for cell in row] for row in rows]
    return tabulate(cells, headers="firstrow", tablefmt="pipe", disable_numparse=True)


def plain_table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows for a terminal, the first of them the header: the first column to the left, numbers to the right."""
    alignment = ["left", *["right"] * (len(rows[0]) - 1)]
    return tabulate(rows, headers="firstrow", disable_numparse=True, preserve_whitespace=True, colalign=alignment)


def evaluations(summary: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the evaluations among all that a run's summary.json holds."""
    return {name: part for name, part in summary.items() if isinstance(part, dict) and "rewards" in part}


def final_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the evaluations side by side, a row a number."""
    rows = [["", *(column.replace("_", " ") for column in results)]]
    for name in next(iter(results.values()))["rewards"]:
        rows.append([f"reward {name}", *(f"{result['rewards'][name]:.4f}" for result in results.values())])
    for name, title in SHOWN.items():
        if all(result.get(name) is not None for result in results.values()):
            digits = 0 if name == "network_evaluations" else 4
            rows.append([title, *(f"{result[name]:.{digits}f}" for result in results.values())])
    return plain_table(rows)


def numbers(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return a summary's means as flat metrics: `rewards/<name>`, and the others by their own names."""
    own = {name: float(value) for name, value in summary.items() if isinstance(value, int | float)}
    return {f"rewards/{name}": float(value) for name, value in summary["rewards"].items()} | own
