"""Which of two numbers is better, where one may be absent or not finite."""

import math


def rank(value: float | None, mode: str) -> float:
    """Return a number that is higher the better `value` is.

    Args:
        value: of an evaluation; None and what is not finite are the worst, whatever the mode.
        mode: `max` or `min`, which way is better.
    """
    if value is None or not math.isfinite(value):
        return -math.inf
    return value if mode == "max" else -value
