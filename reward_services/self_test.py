"""The picture that a replica judges again and again, to find out whether it still judges as it should."""

import math

import numpy as np

from reward_services.protocol import RewardFailedError
from reward_services.spec import RewardSpec

PROMPT = "a picture of colours"


def picture() -> np.ndarray:
    """Return the test picture, [1, 3, 64, 64]: colours that vary over the whole range, finely and coarsely."""
    down, across = np.mgrid[0:64, 0:64] / 63
    stripes = 0.5 + 0.5 * np.sin(40 * down * across)
    return np.stack([down, across, stripes])[None].astype(np.float32)


def check(spec: RewardSpec, scores: np.ndarray, gradient: np.ndarray, found_before: float | None) -> float:
    """Return the test picture's score; RewardFailedError if it is off, or something is not finite.

    Args:
        spec: names the reward, and the score if it is known.
        scores: [1], what the model says now.
        gradient: of it.
        found_before: what this replica said when it started; counts only if the spec does not know the score.
    """
    score = float(scores[0])
    if not (math.isfinite(score) and np.isfinite(gradient).all()):
        raise RewardFailedError(spec.name, f"checkpoint {spec.checkpoint!r} gives {scores} for the test picture")
    expected = found_before if spec.self_test_score is None else spec.self_test_score
    if expected is not None and abs(score - expected) > spec.self_test_tolerance * max(abs(expected), 0.01):
        raise RewardFailedError(
            spec.name, f"the test picture scores {score:.6g}, expected {expected:.6g}: weights or device are damaged"
        )
    return score
