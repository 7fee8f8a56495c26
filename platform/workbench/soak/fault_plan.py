"""Which fault comes when: the same for the same seed."""

import random
from collections.abc import Sequence
from typing import NamedTuple

KINDS = ("worker", "saving", "preemption", "replica", "outage", "slow", "full_disk", "damage", "mlflow")
"""What happens in a soak; see `faults`. Each comes as often as the others, give or take one."""
MARGIN = 0.1
"""Part of each stretch that stays free of faults at either end."""


class Fault(NamedTuple):
    """A fault of a kind, once training has come so far."""

    images: int
    kind: str


def plan(seed: int, num_images: int, count: int, kinds: Sequence[str] = KINDS) -> list[Fault]:
    """Return faults at random positions, one in each of `count` equal stretches of the run, in a random order."""
    chance = random.Random(seed)
    order: list[str] = []
    while len(order) < count:
        order += chance.sample(kinds, len(kinds))
    stretch = num_images / max(count, 1)
    positions = [int((i + chance.uniform(MARGIN, 1 - MARGIN)) * stretch) for i in range(count)]
    return [Fault(images, kind) for images, kind in zip(positions, order, strict=False)]
