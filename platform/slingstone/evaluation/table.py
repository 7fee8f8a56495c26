"""Evaluations side by side as text."""

from collections.abc import Mapping, Sequence
from typing import Any

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


def final_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the evaluations side by side, a row a number."""
    columns = list(results)
    rewards = {f"reward {name}": name for name in next(iter(results.values()))["rewards"]}
    rows: list[Sequence[str]] = [["", *(column.replace("_", " ") for column in columns)]]
    for title, name in rewards.items():
        rows.append([title, *(f"{results[column]['rewards'][name]:.4f}" for column in columns)])
    for name, title in SHOWN.items():
        if all(result.get(name) is not None for result in results.values()):
            digits = 0 if name == "network_evaluations" else 4
            rows.append([title, *(f"{results[column][name]:.{digits}f}" for column in columns)])
    widths = [max(len(row[place]) for row in rows) for place in range(len(columns) + 1)]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def numbers(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return a summary's means as flat metrics: `rewards/<name>`, and the others by their own names."""
    own = {name: float(value) for name, value in summary.items() if isinstance(value, int | float)}
    return {f"rewards/{name}": float(value) for name, value in summary["rewards"].items()} | own
