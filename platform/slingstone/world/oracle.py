"""The judge that no training sees: what a picture shows, by segmentation and template matching, and its true utility.

No network and no threshold is fitted to any model's pictures. Utility is the hidden quantity that the embedded reward
models only approximate:

    utility = truth * (0.5 + 0.5 * (0.45 sharpness + 0.35 cleanliness + 0.20 composition)),    all in [0, 1]

* truth: the share of the caption's claims that hold (1 when all do).
* sharpness: 1 where outlines are one pixel wide, falling as exp(-(extra width in pixels) / 2).
* cleanliness: exp(-(RMS deviation of the background from its own median colour) / 0.08).
* composition: exp(-(distance of the things' common centre from the picture's, in pixels / 8)^2).
"""

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from jaxtyping import Float
from scipy import ndimage
from torch import Tensor

from slingstone.world.captions import BACKGROUNDS, COLOURS, SHAPES, Scene, parse
from slingstone.world.claims import SeenThing, by_kind, check
from slingstone.world.drawing import PALETTE, SIZE, pixel_centres, signed_distance

_MIN_CONTRAST = 0.22  # chroma distance from the background: things are coloured, stains and shadows are not
_MIN_AREA = 20  # pixels
_MIN_OVERLAP = 0.65  # with the best template, intersection over union
_SIZE_BOUND = 9.2  # half extent in pixels between small and large


class Oracle:
    """Scores pictures of captioned scenes."""

    def __call__(
        self, images: Float[Tensor, "batch 3 rows columns"], prompts: Sequence[str]
    ) -> dict[str, Float[Tensor, " batch"]]:
        """Judge each picture against its caption.

        Args:
            images: RGB in [0, 1].
            prompts: captions of the grammar.

        Returns:
            `utility` and `caption_accuracy` (1 where every claim of the caption holds), `sharpness`, `cleanliness`,
            `composition`, and `accuracy/<attribute>`, NaN where the caption makes no such claim. Captions of one and
            of two things also stand apart, as `accuracy/one_object` and `accuracy/two_objects`.

        Raises:
            ValueError: a prompt is no sentence of the grammar, or the pictures are not 48 x 48.
        """
        if tuple(images.shape[-2:]) != (SIZE, SIZE):
            size = tuple(images.shape[-2:])
            raise ValueError(f"images are {size}; the scenes oracle judges {SIZE} x {SIZE} pictures")
        pictures = images.detach().float().cpu().permute(0, 2, 3, 1).numpy()
        rows = [_judge(picture, parse(prompt)) for picture, prompt in zip(pictures, prompts, strict=True)]
        return {name: torch.tensor([row[name] for row in rows], dtype=torch.float32) for name in rows[0]}


def _judge(picture: np.ndarray, scene: Scene) -> dict[str, float]:
    background, deviation, found = look(picture)
    claims = check(scene, background, found, _SIZE_BOUND)
    truth = float(np.nanmean(list(claims.values())))
    centre = np.mean([thing.centre for thing in found], axis=0) if found else np.zeros(2)
    edge_width = np.mean([thing.edge_width for thing in found]) if found else np.inf
    quality = {
        "sharpness": float(np.exp(-max(edge_width - 1.0, 0.0) / 2)),
        "cleanliness": float(np.exp(-deviation / 0.08)),
        "composition": float(np.exp(-np.sum((centre - SIZE / 2) ** 2) / 64)),
    }
    merit = 0.45 * quality["sharpness"] + 0.35 * quality["cleanliness"] + 0.20 * quality["composition"]
    return {"utility": truth * (0.5 + 0.5 * merit), **quality, **by_kind(scene, claims)}


def look(picture: np.ndarray) -> tuple[str, float, list[SeenThing]]:
    """Return the background's name, its RMS deviation from uniform, and the things, largest first.

    Args:
        picture: (rows, columns, 3) in [0, 1].
    """
    frame = np.ones(picture.shape[:2], dtype=bool)
    frame[2:-2, 2:-2] = False
    ground = np.median(picture[frame], axis=0)
    contrast = np.linalg.norm(_chroma(picture) - _chroma(ground), axis=-1)
    labels, count = cast("tuple[np.ndarray, int]", ndimage.label(contrast > _MIN_CONTRAST))
    things, taken = [], np.zeros(contrast.shape, dtype=bool)
    for label in range(1, count + 1):
        region = labels == label
        if region.sum() >= _MIN_AREA:
            found, halo = _identify(picture, ground, region, (labels > 0) & ~region)
            things.append((region.sum(), found))
            taken |= halo
    free = ~taken
    deviation = float(np.sqrt(np.mean((picture[free] - ground) ** 2))) if free.any() else 1.0
    things.sort(key=lambda pair: -pair[0])
    return _nearest(ground, BACKGROUNDS), deviation, [found for _, found in things]


def _chroma(colour: np.ndarray) -> np.ndarray:
    return colour - colour.mean(axis=-1, keepdims=True)


def _identify(
    picture: np.ndarray, ground: np.ndarray, region: np.ndarray, others: np.ndarray
) -> tuple[SeenThing, np.ndarray]:
    """Measure one region; also return the pixels that it and its soft outline cover."""
    depth = np.asarray(ndimage.distance_transform_edt(region))
    core = region & (depth >= min(2.0, depth.max()))
    ink = np.median(picture[core], axis=0)
    halo = ndimage.binary_dilation(region, iterations=3) & ~others
    span = _chroma(ink) - _chroma(ground)
    cover = np.clip((_chroma(picture) - _chroma(ground)) @ span / (span @ span), 0, 1) * halo
    solid = cover > 0.5
    if not solid.any():
        solid = region
    rows, columns = np.nonzero(solid)
    middle = np.array([columns.min() + columns.max() + 1, rows.min() + rows.max() + 1]) / 2
    extent = np.array([np.ptp(columns) + 1, np.ptp(rows) + 1]) / 2
    radius = float(extent.mean())
    shape, overlap = _best_template(cover, middle, radius)
    perimeter = np.abs(np.diff(solid.astype(int), axis=0)).sum() + np.abs(np.diff(solid.astype(int), axis=1)).sum()
    # cover (1 - cover) integrates to width / 6 across a linear ramp; an outline of n pixel sides is about 0.8 n long
    width = 6 * float((cover * (1 - cover)).sum() / max(0.8 * perimeter, 1.0))
    name = shape if overlap >= _MIN_OVERLAP else "nothing"
    return SeenThing(_nearest(ink, COLOURS), name, radius, (float(middle[0]), float(middle[1])), width), halo


def _best_template(cover: np.ndarray, middle: np.ndarray, radius: float) -> tuple[str, float]:
    """Return the shape whose ideal drawing overlaps best, over small shifts of scale, and that overlap."""
    pixels = pixel_centres() - torch.tensor(middle, dtype=torch.float32)
    radii = torch.tensor([radius - 0.5, radius, radius + 0.5]).repeat(len(SHAPES))
    kinds = torch.arange(len(SHAPES)).repeat_interleave(3)
    templates = (0.5 - signed_distance(pixels.expand(len(kinds), -1, -1, -1), radii, kinds)).clamp(0, 1)
    seen = torch.from_numpy(cover.astype(np.float32))
    overlap = torch.minimum(templates, seen).sum((1, 2)) / torch.maximum(templates, seen).sum((1, 2))
    best = int(overlap.argmax())
    return SHAPES[int(kinds[best])], float(overlap[best])


def _nearest(colour: np.ndarray, names: Sequence[str]) -> str:
    return min(names, key=lambda name: float(np.sum((colour - np.array(PALETTE[name])) ** 2)))
