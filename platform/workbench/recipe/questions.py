"""What stands where: questions about a scene whose answers teach text and picture towers to read."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from slingstone.world.captions import BACKGROUNDS, COLOURS, SHAPES, SIZES, Scene

CHOICES = (len(COLOURS), len(SHAPES)) * 2 + (1 + len(SIZES), 3, len(BACKGROUNDS))
"""Colour and shape of the thing that is left, above or alone, the same of the other, size, axis, background."""
_AXES = {None: 0, "to the left of": 1, "to the right of": 1, "above": 2, "below": 2}


def answers(scenes: Sequence[Scene]) -> Int[Tensor, "batch question"]:
    """Return the index of each right answer."""
    return torch.tensor([_answers(scene) for scene in scenes])


def _answers(scene: Scene) -> list[int]:
    things = scene.things[::-1] if scene.relation in ("to the right of", "below") else scene.things
    shown = [index for thing in (things[0], things[-1]) for index in _attributes(thing.colour, thing.shape)]
    size = 0 if things[0].size is None else 1 + SIZES.index(things[0].size)
    return [*shown, size, _AXES[scene.relation], BACKGROUNDS.index(scene.background)]


def _attributes(colour: str, shape: str) -> tuple[int, int]:
    return COLOURS.index(colour), SHAPES.index(shape)


def answer_loss(logits: Float[Tensor, "batch choice"], right: Int[Tensor, "batch question"]) -> Float[Tensor, ""]:
    """Return the cross-entropy of all questions together."""
    parts = logits.split(CHOICES, dim=-1)
    return torch.stack([cross_entropy(part, right[:, index]) for index, part in enumerate(parts)]).sum()


def all_right(logits: Float[Tensor, "batch choice"], right: Int[Tensor, "batch question"]) -> float:
    """Return the share of scenes of which every answer is right."""
    found = torch.stack([part.argmax(-1) for part in logits.split(CHOICES, dim=-1)], dim=-1)
    return (found == right).all(-1).float().mean().item()
