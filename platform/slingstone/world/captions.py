"""The language of the scenes: a small grammar, its parser and the combinations that training never sees."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product

SIZES = ("small", "large")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
SHAPES = ("circle", "square", "triangle", "cross", "ring")
RELATIONS = ("to the left of", "to the right of", "above", "below")
BACKGROUNDS = ("white", "gray", "black", "pink")


@dataclass(frozen=True)
class Thing:
    """One object; `size` is given only where it is alone in the scene."""

    colour: str
    shape: str
    size: str | None = None

    def __str__(self) -> str:
        return " ".join(word for word in (self.size, self.colour, self.shape) if word)


@dataclass(frozen=True)
class Scene:
    """What a caption says: one thing, or two in a relation (the first is `relation` the second)."""

    things: tuple[Thing, ...]
    background: str
    relation: str | None = None

    @property
    def caption(self) -> str:
        """The scene in words; `parse` is the inverse."""
        words = [f"{'an' if str(thing)[0] in 'aeiou' else 'a'} {thing}" for thing in self.things]
        return f" {self.relation} ".join(words) + f" on a {self.background} background"

    @property
    def held_out(self) -> bool:
        """Whether some (colour, shape, background) of the scene is kept from all training: one triple in six."""
        background = 3 * BACKGROUNDS.index(self.background)
        places = [COLOURS.index(thing.colour) + 2 * SHAPES.index(thing.shape) for thing in self.things]
        return any((place + background) % len(COLOURS) == 0 for place in places)


def single_scenes() -> Iterator[Scene]:
    """Every scene with one thing (240)."""
    for size, colour, shape, background in product(SIZES, COLOURS, SHAPES, BACKGROUNDS):
        yield Scene((Thing(colour, shape, size),), background)


def double_scenes() -> Iterator[Scene]:
    """Every scene with two things that differ in colour and in shape (9,600)."""
    for first, second in product(product(COLOURS, SHAPES), repeat=2):
        if first[0] != second[0] and first[1] != second[1]:
            for relation, background in product(RELATIONS, BACKGROUNDS):
                yield Scene((Thing(*first), Thing(*second)), background, relation)


_BY_CAPTION = {scene.caption: scene for scenes in (single_scenes(), double_scenes()) for scene in scenes}


def parse(caption: str) -> Scene:
    """Return the scene that `caption` describes.

    Raises:
        ValueError: the caption is not a sentence of the grammar.
    """
    try:
        return _BY_CAPTION[caption]
    except KeyError:
        example = next(iter(_BY_CAPTION))
        raise ValueError(f"caption {caption!r} is no sentence of the scenes world; one is {example!r}") from None


def sample_scenes(count: int, seed: int, *, held_out: bool, share_of_pairs: float = 0.5) -> list[Scene]:
    """Return `count` scenes, `share_of_pairs` of them with two things, either all held out or none."""
    rng = random.Random(seed)
    singles, doubles = _scenes(held_out)
    num_pairs = round(count * share_of_pairs)
    scenes = rng.choices(doubles, k=num_pairs) + rng.choices(singles, k=count - num_pairs)
    rng.shuffle(scenes)
    return scenes


def held_out_scenes(count: int, seed: int) -> list[Scene]:
    """Return `count` distinct held-out scenes in random order: all with one thing, the others with two."""
    rng = random.Random(seed)
    singles, doubles = _scenes(True)
    scenes = [*singles[:count], *rng.sample(doubles, max(0, count - len(singles)))]
    rng.shuffle(scenes)
    return scenes


@cache
def _scenes(held_out: bool) -> tuple[list[Scene], list[Scene]]:
    singles = [scene for scene in single_scenes() if scene.held_out == held_out]
    doubles = [scene for scene in double_scenes() if scene.held_out == held_out]
    return singles, doubles
