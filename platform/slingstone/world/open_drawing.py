"""Draws open scenes: 64 px pictures in which all that the caption leaves open varies, some with flaws that one sees.

Open are size (of two things), place, shade, ground, outline and crumbs, small dots that captions do not count. Flaws
are blur, bleeding colours, crooked outlines and stains. What a caption says holds in every drawing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from slingstone.world.captions import COLOURS, SHAPES, Scene, Thing
from slingstone.world.drawing import PALETTE, signed_distance

SIZE = 64
RADII = {"small": (6.5, 9.0), "large": (13.0, 18.0), None: (7.0, 13.0)}
SHADES = (0.72, 1.2)
"""Below 1 an ink is mixed with black, above with white, by the difference."""
FLAW_RATE = 0.2
"""Share of pictures with each flaw."""
_MARGIN = 2.0  # between things and the edge of the picture
_GAP = 4.0  # between two things
_TRIES = 64
_CRUMBS = 3
_STAINS = 2
_WAVES = 3
_OUTLINE = 1.8
_AXES = {None: (0, 0), "to the left of": (1, 0), "to the right of": (-1, 0), "above": (0, 1), "below": (0, -1)}


@dataclass(frozen=True)
class Layout:
    """What the caption leaves open, and the flaws; lengths in pixels, one row a picture, two slots for things."""

    centre: Float[Tensor, "batch 2 xy"]
    radius: Float[Tensor, "batch 2"]
    shade: Float[Tensor, "batch 2"]
    outline: Float[Tensor, "batch 2"]
    """-1 black, 0 none, 1 white."""
    ground: Float[Tensor, "batch light"]
    """Brightness, slope along x and y."""
    crumbs: Float[Tensor, "batch crumb 4"]
    """x, y, radius (0: absent), index of the colour."""
    softness: Float[Tensor, " batch"]
    """Width of outlines; 1 is sharp."""
    bleeding: Float[Tensor, "batch 2 4"]
    """Strength, direction x and y, index of the colour that bleeds in."""
    wobble: Float[Tensor, "batch 2 wave 2"]
    """Height and phase of waves along the outline."""
    stains: Float[Tensor, "batch stain 4"]
    """x, y, radius, strength (0: absent)."""


def sample_layout(scenes: Sequence[Scene], rng: torch.Generator, flaws: float = 1.0) -> Layout:
    """Draw at random what the captions leave open; `flaws` in [0, 1] scales how many pictures have each flaw."""
    batch = len(scenes)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=rng)

    def some(rate: float, *shape: int) -> Tensor:
        return (torch.rand(*shape, generator=rng) < rate).float()

    rate = FLAW_RATE * flaws
    centre, radius = _places(scenes, rng)
    angle = uniform(0.0, 2 * torch.pi, batch, 2)
    ground = [uniform(-0.08, 0.06, batch), uniform(-0.14, 0.14, batch), uniform(-0.14, 0.14, batch)]
    crumbs = [*uniform(3.0, SIZE - 3.0, batch, _CRUMBS, 2).unbind(-1), uniform(1.8, 2.4, batch, _CRUMBS)]
    crumbs[2] *= some(0.35, batch, _CRUMBS) * _clear(crumbs[0], crumbs[1], centre, radius)
    crumbs += [torch.randint(len(COLOURS), (batch, _CRUMBS), generator=rng).float()]
    bleeding = [some(rate, batch, 1).expand(-1, 2) * uniform(0.4, 0.75, batch, 2), angle.cos(), angle.sin()]
    bleeding += [torch.randint(len(COLOURS), (batch, 2), generator=rng).float()]
    height = uniform(0.02, 0.075, batch, 2, _WAVES) * radius[..., None] * some(rate, batch, 1, 1)
    wave = torch.stack([height, uniform(0.0, 2 * torch.pi, batch, 2, _WAVES)], dim=-1)
    stains = [*uniform(0.0, float(SIZE), batch, _STAINS, 2).unbind(-1), uniform(4.0, 8.0, batch, _STAINS)]
    sign = 2 * some(0.5, batch, 1) - 1
    stains += [some(rate, batch, 1) * sign * uniform(0.2, 0.4, batch, _STAINS)]
    return Layout(
        centre=centre,
        radius=radius,
        shade=uniform(*SHADES, batch, 2),
        outline=some(0.5, batch, 1) * (2 * some(0.5, batch, 1) - 1).expand(-1, 2),
        ground=torch.stack(ground, dim=-1),
        crumbs=torch.stack(crumbs, dim=-1),
        softness=1 + some(rate, batch) * uniform(1.5, 4.0, batch),
        bleeding=torch.stack(bleeding, dim=-1),
        wobble=wave,
        stains=torch.stack(stains, dim=-1),
    )


def _places(scenes: Sequence[Scene], rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return centres and radii; of `_TRIES` random places the first in which things are in order and apart."""
    batch = len(scenes)
    low, high = (
        torch.tensor([[RADII[thing.size][end] for thing in _slots(scene)] for scene in scenes]) for end in range(2)
    )
    radius = low + (high - low) * torch.rand(batch, 2, generator=rng)
    two = torch.tensor([len(scene.things) == 2 for scene in scenes])
    radius[:, 1] *= two
    room = (SIZE / 2 - _MARGIN - radius)[:, None, :, None]
    centre = SIZE / 2 + room * (2 * torch.rand(batch, _TRIES, 2, 2, generator=rng) - 1)
    axis = torch.tensor([_AXES[scene.relation] for scene in scenes], dtype=torch.float32)[:, None]
    offset = centre[:, :, 1] - centre[:, :, 0]
    along, across = (offset * axis).sum(-1), (offset * axis.flip(-1)).sum(-1).abs()
    fits = (along > radius.sum(1, keepdim=True) + _GAP) & (along > 1.3 * across) | ~two[:, None]
    first = fits.float().argmax(1)
    found = centre[torch.arange(batch), first]
    # Where no try fits, large things stand at the ends of the axis.
    ends = SIZE / 2 + axis * (SIZE / 2 - _MARGIN - radius)[..., None] * torch.tensor([-1.0, 1.0])[:, None]
    return torch.where(fits.any(1)[:, None, None], found, ends), radius


def _slots(scene: Scene) -> tuple[Thing, Thing]:
    """Return the two things; one that is alone stands in for the absent second."""
    return scene.things[0], scene.things[-1]


def _clear(x: Tensor, y: Tensor, centre: Tensor, radius: Tensor) -> Tensor:
    """Return 1 where a crumb lies off all things and their outlines."""
    away = torch.maximum((x[..., None] - centre[:, None, :, 0]).abs(), (y[..., None] - centre[:, None, :, 1]).abs())
    return (away > radius[:, None] + 6).all(-1).float()


def pixel_centres() -> Float[Tensor, "rows columns xy"]:
    """Return the position of each pixel's centre, in pixels from the upper left corner."""
    ticks = torch.arange(SIZE, dtype=torch.float32) + 0.5
    return torch.stack(torch.meshgrid(ticks, ticks, indexing="xy"), dim=-1)


def render(scenes: Sequence[Scene], layout: Layout) -> Float[Tensor, "batch 3 rows columns"]:
    """Return RGB pictures in [0, 1]."""
    picture = torch.tensor([PALETTE[scene.background] for scene in scenes])[:, :, None, None] + _light(layout)[:, None]
    inks = torch.tensor([PALETTE[colour] for colour in COLOURS])
    pixels = pixel_centres()
    for x, y, radius, colour in (crumb.unbind(-1) for crumb in layout.crumbs.unbind(1)):
        away = ((pixels[..., 0] - x[:, None, None]) ** 2 + (pixels[..., 1] - y[:, None, None]) ** 2).sqrt()
        cover = (0.5 - away + radius[:, None, None]).clamp(0, 1) * (radius[:, None, None] > 0)
        picture = torch.lerp(picture, inks[colour.long()][:, :, None, None].expand_as(picture), cover[:, None])
    for slot in range(2):
        picture = _with_thing(picture, [_slots(scene)[slot] for scene in scenes], layout, slot)
    return picture.clamp(0, 1)


def _light(layout: Layout) -> Float[Tensor, "batch rows columns"]:
    """Return how much brighter than its colour the ground is: slope and stains."""
    bright, slope_x, slope_y = (part[:, None, None] for part in layout.ground.unbind(-1))
    x, y = (pixel_centres() / SIZE - 0.5).unbind(-1)
    light = bright + slope_x * x + slope_y * y
    pixels = pixel_centres()
    for left, top, radius, strength in (stain.unbind(-1) for stain in layout.stains.unbind(1)):
        away2 = (pixels[..., 0] - left[:, None, None]) ** 2 + (pixels[..., 1] - top[:, None, None]) ** 2
        light = light + strength[:, None, None] * torch.exp(-((away2 / radius[:, None, None] ** 2) ** 2))
    return light


def _with_thing(picture: Tensor, things: Sequence[Thing], layout: Layout, slot: int) -> Tensor:
    """Draw one thing of each scene over the pictures."""
    local = pixel_centres() - layout.centre[:, slot, None, None, :]
    radius = layout.radius[:, slot]
    distance = signed_distance(local, radius, _indices(things)) + _waves(local, layout.wobble[:, slot])
    width, present = layout.softness[:, None, None], radius[:, None, None] > 0
    line = layout.outline[:, slot, None, None]
    edge = (0.5 - (distance - _OUTLINE) / width).clamp(0, 1) * (line != 0) * present
    picture = torch.lerp(picture, (0.5 + 0.47 * line)[:, None].expand_as(picture), edge[:, None])
    cover = (0.5 - distance / width).clamp(0, 1) * present
    return torch.lerp(picture, _ink(things, layout, slot, local), cover[:, None])


def _indices(things: Sequence[Thing]) -> Int[Tensor, " batch"]:
    return torch.tensor([SHAPES.index(thing.shape) for thing in things])


def _waves(local: Tensor, waves: Tensor) -> Float[Tensor, "batch rows columns"]:
    """Return how far a crooked outline lies from its place."""
    angle = torch.atan2(local[..., 1], local[..., 0])
    height, phase = waves[:, :, 0, None, None], waves[:, :, 1, None, None]
    number = torch.arange(3, 3 + waves.shape[1])[:, None, None]
    return (height * torch.sin(number * angle[:, None] + phase)).sum(1)


def _ink(things: Sequence[Thing], layout: Layout, slot: int, local: Tensor) -> Float[Tensor, "batch 3 rows columns"]:
    """Return the thing's colour everywhere: its shade, and what bleeds in from one side."""
    shade = layout.shade[:, slot, None]
    colours = torch.tensor([PALETTE[thing.colour] for thing in things])
    shaded = torch.where(shade < 1, colours * shade, colours + (1 - colours) * (shade - 1))[:, :, None, None]
    strength, x, y, index = (part[:, None, None] for part in layout.bleeding[:, slot].unbind(-1))
    other = torch.tensor([PALETTE[colour] for colour in COLOURS])[index[:, 0, 0].long()][:, :, None, None]
    side = (local[..., 0] * x + local[..., 1] * y) / layout.radius[:, slot, None, None].clamp_min(1)
    return torch.lerp(shaded, other, (strength * torch.sigmoid(6 * side - 2))[:, None])


def draw(scenes: Sequence[Scene], rng: torch.Generator, flaws: float = 1.0) -> Float[Tensor, "batch 3 rows columns"]:
    """Draw one picture a scene, RGB in [0, 1]; see `sample_layout` for `flaws`."""
    return render(scenes, sample_layout(scenes, rng, flaws))
