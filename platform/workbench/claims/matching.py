"""Numbers over seeds, and arms at equal trained reward."""

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

SHARES = (1 / 3, 2 / 3, 1.0)
"""Where in the common range of trained rewards the arms are compared."""

Curve = Sequence[tuple[float, float]]
"""Points (trained reward, another number) of one arm and one seed."""

BySeed = Mapping[int, float]
"""A number of one arm by its seed."""


class Mean(NamedTuple):
    """Mean and standard error over seeds; the error is None for a single one."""

    mean: float
    error: float | None


def mean_of(values: Collection[float]) -> Mean | None:
    """Return mean and standard error, None if there is nothing."""
    if not values:
        return None
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return Mean(statistics.fmean(values), error)


def targets(curves: Sequence[Curve]) -> tuple[float, ...]:
    """Return trained rewards that every curve reaches without extrapolation; none if they have no range in common."""
    if not curves or any(len(curve) < 2 for curve in curves):
        return ()
    low = max(min(x for x, _ in curve) for curve in curves)
    high = min(max(x for x, _ in curve) for curve in curves)
    return tuple(low + share * (high - low) for share in SHARES) if high > low else ()


def at(curve: Curve, x: float) -> float:
    """Return a curve's value at `x`, linear between the neighbours in trained reward."""
    ordered = sorted(curve)
    for (left, below), (right, above) in pairwise(ordered):
        if left <= x <= right:
            share = 0.0 if right == left else (x - left) / (right - left)
            return below + share * (above - below)
    raise ValueError(f"{x} is not between {ordered[0][0]} and {ordered[-1][0]}")


def matched(arms: Mapping[str, Mapping[int, Curve]], x: float) -> dict[str, dict[int, float]]:
    """Return every arm's value at the same trained reward, seed by seed."""
    return {name: {seed: at(curve, x) for seed, curve in curves.items()} for name, curves in arms.items()}


def differences(arms: Mapping[str, BySeed]) -> dict[str, Mean | None]:
    """Return what every further arm has more than the first, over their common seeds; what both share cancels."""
    (_, first), *others = arms.items()
    return {name: mean_of([found[seed] - first[seed] for seed in found if seed in first]) for name, found in others}
