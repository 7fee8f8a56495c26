"""How sure a mean over votes is: voters and prompts are drawn again, since their votes are no independent samples.

Source: Owen 2007, arXiv:0712.1111 (bootstrap of crossed factors).
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def crossed(factors: Sequence[Sequence[str]], draws: int, seed: int) -> Float[np.ndarray, "draw vote"]:
    """Return how often each vote is drawn: the product over factors of how often its level was, with replacement.

    Args:
        factors: of each, such as voters, every vote's level.
        draws: how many samples.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    drawn = np.ones((draws, len(factors[0])))
    for levels in factors:
        _, places = np.unique(np.asarray(levels, dtype=str), return_inverse=True)
        count = int(places.max(initial=-1)) + 1
        if count > 1:
            drawn *= rng.multinomial(count, np.full(count, 1 / count), size=draws)[:, places]
    return drawn


def interval_of_mean(
    values: Float[np.ndarray, " vote"], factors: Sequence[Sequence[str]], draws: int, seed: int
) -> tuple[float, float]:
    """Return the ends of the 95 % interval of the mean of one value or more; see `crossed`."""
    drawn = crossed(factors, draws, seed)
    total = drawn.sum(axis=1)
    low, high = np.quantile((drawn @ values)[total > 0] / total[total > 0], [0.025, 0.975])
    return float(low), float(high)
