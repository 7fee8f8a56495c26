"""The judge of open scenes that no training sees: what a picture shows, which flaws it has, and its true utility.

No network and no threshold is fitted to any model's pictures. Utility is the hidden quantity that the reward models
only approximate:

    utility = truth * (0.4 + 0.6 * (sharpness + cleanliness + purity + regularity) / 4),    all in [0, 1]

* truth: the share of the caption's claims that hold (1 when all do): no wrong relation, no missing or doubled thing.
* sharpness: 1 where outlines are one pixel wide, falling as exp(-(extra width in pixels) / 2).
* cleanliness: exp(-(share of the ground that stains cover) / 0.04); the slope of its light is no stain.
* purity: the share of the things that has their own colour; 1 where nothing bleeds.
* regularity: 1 where outlines run as the ideal shape's do, falling as exp(-(missing overlap) / 0.1).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from jaxtyping import Float
from scipy import ndimage
from torch import Tensor

from slingstone.world.captions import BACKGROUNDS, COLOURS, SHAPES, Scene, parse
from slingstone.world.claims import SeenThing, by_kind, check
from slingstone.world.drawing import PALETTE, signed_distance
from slingstone.world.open_drawing import SIZE, pixel_centres

_MIN_CONTRAST = 0.18  # chroma distance from the ground: things are coloured; stains and outlines are not
_MIN_AREA = 50  # pixels; smaller are crumbs
_MIN_OVERLAP = 0.6  # with the best template, intersection over union
_IDEAL_OVERLAP = 0.9  # what a crisp drawing reaches on the pixel grid
_SIZE_BOUND = 11.0  # half extent in pixels between small and large
_STAIN = 0.1  # deviation from the ground's own light
_NEUTRAL = 0.1  # chroma of a pixel without a colour of its own
_INKS = np.array([PALETTE[name] for name in COLOURS])


@dataclass(frozen=True)
class Look(SeenThing):
    """A thing with its flaws."""

    purity: float
    overlap: float


@dataclass(frozen=True)
class Seen:
    """All that a picture shows."""

    background: str
    things: list[Look]
    """Largest first."""
    crumbs: int
    stained: float
    """Share of the ground."""


class Oracle:
    """Scores pictures of captioned open scenes."""

    def __call__(
        self, images: Float[Tensor, "batch 3 rows columns"], prompts: Sequence[str]
    ) -> dict[str, Float[Tensor, " batch"]]:
        """Judge each picture against its caption.

        Args:
            images: RGB in [0, 1].
            prompts: captions of the grammar.

        Returns:
            `utility` and `caption_accuracy` (1 where every claim of the caption holds), `sharpness`, `cleanliness`,
            `purity`, `regularity`, and `accuracy/<attribute>`, NaN where the caption makes no such claim. Captions of
            one and of two things also stand apart, as `accuracy/one_object` and `accuracy/two_objects`.

        Raises:
            ValueError: a prompt is no sentence of the grammar, or the pictures are not 64 x 64.
        """
        if tuple(images.shape[-2:]) != (SIZE, SIZE):
            size = tuple(images.shape[-2:])
            raise ValueError(f"images are {size}; the open scenes oracle judges {SIZE} x {SIZE} pictures")
        pictures = images.detach().float().cpu().permute(0, 2, 3, 1).numpy()
        rows = [_judge(look(picture), parse(prompt)) for picture, prompt in zip(pictures, prompts, strict=True)]
        return {name: torch.tensor([row[name] for row in rows], dtype=torch.float32) for name in rows[0]}


def _judge(seen: Seen, scene: Scene) -> dict[str, float]:
    claims = check(scene, seen.background, seen.things, _SIZE_BOUND)
    things = seen.things
    overlap = np.array([min(thing.overlap, _IDEAL_OVERLAP) for thing in things])
    width = np.array([max(thing.edge_width, 1.0) for thing in things])
    quality = {
        "sharpness": float(np.exp(-(width - 1) / 2).mean()) if things else 0.0,
        "cleanliness": float(np.exp(-seen.stained / 0.04)),
        "purity": float(np.mean([thing.purity for thing in things])) if things else 0.0,
        "regularity": float(np.exp(-(_IDEAL_OVERLAP - overlap) / 0.1).mean()) if things else 0.0,
    }
    truth = float(np.nanmean(list(claims.values())))
    merit = sum(quality.values()) / len(quality)
    return {"utility": truth * (0.4 + 0.6 * merit), **quality, **by_kind(scene, claims)}


def look(picture: np.ndarray) -> Seen:
    """Return what a picture shows.

    Args:
        picture: (rows, columns, 3) in [0, 1].
    """
    frame = np.ones(picture.shape[:2], dtype=bool)
    frame[2:-2, 2:-2] = False
    ground = np.median(picture[frame], axis=0)
    chroma = _chroma(picture)
    # Things differ from the ground and are coloured themselves, unlike outlines on pink.
    contrast = np.minimum(np.linalg.norm(chroma - _chroma(ground), axis=-1), np.linalg.norm(chroma, axis=-1))
    mask = ndimage.binary_closing(np.pad(contrast > _MIN_CONTRAST, 2, mode="edge"))[2:-2, 2:-2]
    labels, count = cast("tuple[np.ndarray, int]", ndimage.label(mask))
    areas = ndimage.sum_labels(mask, labels, range(1, count + 1)).astype(int)
    order = sorted(range(count), key=lambda label: -areas[label])
    things = [_thing(picture, contrast, labels, label + 1) for label in order if areas[label] >= _MIN_AREA]
    free = np.logical_not(ndimage.binary_dilation(mask, iterations=4))
    crumbs = int(((areas >= 5) & (areas < _MIN_AREA)).sum())
    background = min(BACKGROUNDS, key=lambda name: float(np.sum((ground - np.array(PALETTE[name])) ** 2)))
    return Seen(background, things, crumbs, _stained(picture.mean(-1), free))


def _chroma(colour: np.ndarray) -> np.ndarray:
    return colour - colour.mean(axis=-1, keepdims=True)


def _stained(light: np.ndarray, free: np.ndarray) -> float:
    """Return the share of the free ground that deviates from its own slope."""
    if free.sum() < _MIN_AREA:
        return 1.0
    rows, columns = np.nonzero(free)
    x, y = columns / SIZE - 0.5, rows / SIZE - 0.5
    terms, value = np.stack([np.ones_like(x), x, y], axis=-1), light[free]
    sound, away = np.ones(len(value), dtype=bool), np.zeros(len(value))
    for _ in range(3):
        slope, *_ = np.linalg.lstsq(terms[sound], value[sound], rcond=None)
        away = np.abs(value - terms @ slope)
        sound = away <= max(_STAIN, float(np.median(away)))
    return float((away > _STAIN).mean())


def _thing(picture: np.ndarray, contrast: np.ndarray, labels: np.ndarray, label: int) -> Look:
    """Measure one region."""
    region = labels == label
    halo = ndimage.binary_dilation(region, iterations=3) & ((labels == 0) | region)
    depth = np.asarray(ndimage.distance_transform_edt(np.pad(region, 1)))[1:-1, 1:-1]
    core = region & (depth >= min(2.0, depth.max()))
    full = ndimage.maximum_filter(np.where(core, contrast, 0), size=9)  # of the ink nearby: colours may bleed
    cover = np.clip(contrast / np.maximum(full, _MIN_CONTRAST), 0, 1) * halo
    cover[region & (depth > 3)] = 1
    solid = cover > 0.5
    rows, columns = np.nonzero(solid)
    middle = np.array([columns.min() + columns.max() + 1, rows.min() + rows.max() + 1]) / 2
    radius = float(np.array([np.ptp(columns) + 1, np.ptp(rows) + 1]).mean() / 2)
    shape, overlap = _best_template(solid, middle, radius)
    perimeter = np.abs(np.diff(np.pad(solid, 1).astype(int), axis=0)).sum()
    perimeter += np.abs(np.diff(np.pad(solid, 1).astype(int), axis=1)).sum()
    # Outside, where nothing bleeds, cover (1 - cover) integrates to width / 12 across half of a linear ramp; an outline
    # of n pixel sides is about 0.8 n long.
    width = 12 * float((cover * (1 - cover))[~solid].sum() / max(0.8 * perimeter, 1.0))
    colour, purity = _colour(picture[core])
    centre = (float(middle[0]), float(middle[1]))
    return Look(colour, shape if overlap >= _MIN_OVERLAP else "nothing", radius, centre, width, purity, overlap)


def _colour(pixels: np.ndarray) -> tuple[str, float]:
    """Return the colour that most pixels have, by the direction of their chroma, and the share that has it."""
    chroma, inks = _chroma(pixels), _chroma(_INKS)
    likeness = chroma @ (inks / np.linalg.norm(inks, axis=-1, keepdims=True)).T
    nearest = np.where(np.linalg.norm(chroma, axis=-1) > _NEUTRAL, likeness.argmax(-1), -1)
    counts = np.array([(nearest == index).sum() for index in range(len(COLOURS))])
    return COLOURS[int(counts.argmax())], float(counts.max() / len(pixels))


def _best_template(solid: np.ndarray, middle: np.ndarray, radius: float) -> tuple[str, float]:
    """Return the shape whose ideal drawing overlaps best, over small shifts of scale, and that overlap."""
    pixels = pixel_centres() - torch.tensor(middle, dtype=torch.float32)
    radii = torch.tensor([radius - 0.5, radius, radius + 0.5]).repeat(len(SHAPES))
    kinds = torch.arange(len(SHAPES)).repeat_interleave(3)
    templates = signed_distance(pixels.expand(len(kinds), -1, -1, -1), radii, kinds) <= 0
    seen = torch.from_numpy(solid)
    overlap = (templates & seen).sum((1, 2)) / (templates | seen).sum((1, 2))
    best = int(overlap.argmax())
    return SHAPES[int(kinds[best])], float(overlap[best])
