"""Which claims of a caption hold in what was seen."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from slingstone.world.captions import Scene


@dataclass(frozen=True)
class SeenThing:
    """A thing in a picture; lengths in pixels."""

    colour: str
    shape: str
    radius: float
    centre: tuple[float, float]
    edge_width: float


def check(scene: Scene, background: str, found: Sequence[SeenThing], size_bound: float) -> dict[str, float]:
    """Return each claim as 1 or 0, averaged over the things; NaN for what the caption leaves open.

    Args:
        scene: what the caption says.
        background: the ground's name.
        found: things in the picture, largest first.
        size_bound: half extent in pixels between small and large.
    """
    claims = {"background": float(background == scene.background), "count": float(len(found) == len(scene.things))}
    pairings = [found] if len(scene.things) == 1 else [found[:2], found[:2][::-1]]
    matches = (_match(scene, pairing, size_bound) for pairing in pairings)
    return claims | max(matches, key=lambda match: np.nansum(list(match.values())))


def by_kind(scene: Scene, claims: dict[str, float]) -> dict[str, float]:
    """Return the truth in numbers of an evaluation: of the whole caption, of each claim, of one and of two things."""
    holds = float(np.nanmin(list(claims.values())) == 1)
    return {
        "caption_accuracy": holds,
        **{f"accuracy/{name}": value for name, value in claims.items()},
        "accuracy/one_object": holds if len(scene.things) == 1 else math.nan,
        "accuracy/two_objects": holds if len(scene.things) == 2 else math.nan,
    }


def _match(scene: Scene, found: Sequence[SeenThing], size_bound: float) -> dict[str, float]:
    pairs = list(zip(scene.things, found, strict=False))
    share = 1 / len(scene.things)
    related = scene.relation is not None
    return {
        "colour": share * sum(thing.colour == seen.colour for thing, seen in pairs),
        "shape": share * sum(thing.shape == seen.shape for thing, seen in pairs),
        "size": math.nan if related else float(any((a.size == "large") == (b.radius > size_bound) for a, b in pairs)),
        "relation": float(len(found) == 2 and _relation_holds(scene.relation, *found)) if related else math.nan,
    }


def _relation_holds(relation: str | None, first: SeenThing, second: SeenThing) -> bool:
    dx, dy = (b - a for a, b in zip(first.centre, second.centre, strict=True))
    along, across = {
        "to the left of": (dx, dy),
        "to the right of": (-dx, dy),
        "above": (dy, dx),
        "below": (-dy, dx),
    }[relation or ""]
    return along > abs(across)
