"""Draws scenes with signed distances: exact, batched, anti-aliased and with the flaws of pictures found in the wild."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from slingstone.world.captions import SHAPES, Scene, Thing

SIZE = 48
PALETTE = {
    "red": (0.85, 0.10, 0.12),
    "green": (0.10, 0.60, 0.20),
    "blue": (0.10, 0.25, 0.88),
    "yellow": (0.98, 0.85, 0.10),
    "purple": (0.55, 0.12, 0.70),
    "orange": (0.98, 0.48, 0.05),
    "white": (0.96, 0.96, 0.96),
    "gray": (0.52, 0.52, 0.52),
    "black": (0.05, 0.05, 0.05),
    "pink": (0.98, 0.70, 0.78),
}
RADII = {"small": (6.0, 7.5), "large": (11.0, 13.5), None: (6.5, 8.2)}
_CROSS_ARM = 0.36
_RING_HOLE = 0.5


@dataclass(frozen=True)
class Layout:
    """Where things are and how well the picture was taken; in pixels, one row a picture, two slots for things."""

    centre: Float[Tensor, "batch 2 xy"]
    radius: Float[Tensor, "batch 2"]
    softness: Float[Tensor, " batch"]
    shading: Float[Tensor, "batch xy"]
    stains: Float[Tensor, "batch stain 4"]


def sample_layout(scenes: Sequence[Scene], rng: torch.Generator, flaws: float = 1.0) -> Layout:
    """Draw positions and radii at random; `flaws` in [0, 1] scales blur, uneven light, stains and bad composition."""
    batch = len(scenes)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=rng)

    slots = [_in_slot(scenes, slot) for slot in range(2)]
    low, high = torch.tensor([[RADII[thing.size] for thing in things] for things in slots]).permute(2, 1, 0)
    present = torch.tensor([[True, len(scene.things) > 1] for scene in scenes])
    radius = torch.where(present, low + (high - low) * torch.rand(batch, 2, generator=rng), 0.0)
    offset = _offsets(scenes, uniform(20.0, 23.0, batch), uniform(-3.0, 3.0, batch))
    spread = torch.tensor([7.0 if len(scene.things) == 1 else 2.5 for scene in scenes])[:, None]
    middle = SIZE / 2 + flaws * spread * uniform(-1.0, 1.0, batch, 2)
    stain = torch.cat(
        [
            uniform(0.0, float(SIZE), batch, 3, 2),
            uniform(3.0, 6.0, batch, 3, 1),
            uniform(-0.2, 0.2, batch, 3, 1) * (torch.rand(batch, 3, 1, generator=rng) < 0.35 * flaws),
        ],
        dim=-1,
    )
    return Layout(
        centre=torch.stack([middle - offset / 2, middle + offset / 2], dim=1),
        radius=radius,
        softness=1 + 3.0 * flaws * torch.rand(batch, generator=rng) ** 2,
        shading=0.10 * flaws * uniform(-1.0, 1.0, batch, 2),
        stains=stain,
    )


def _in_slot(scenes: Sequence[Scene], slot: int) -> list[Thing]:
    """Return each scene's thing in a slot; where there is one alone, it stands in for the absent second."""
    return [scene.things[min(slot, len(scene.things) - 1)] for scene in scenes]


def pixel_centres() -> Float[Tensor, "rows columns xy"]:
    """Return the position of each pixel's centre, in pixels from the upper left corner."""
    ticks = torch.arange(SIZE, dtype=torch.float32) + 0.5
    return torch.stack(torch.meshgrid(ticks, ticks, indexing="xy"), dim=-1)


def _offsets(scenes: Sequence[Scene], along: Tensor, across: Tensor) -> Float[Tensor, "batch xy"]:
    """Vector from the first thing to the second; zero where there is one."""
    directions = {None: (0, 0), "to the left of": (1, 0), "to the right of": (-1, 0), "above": (0, 1), "below": (0, -1)}
    axis = torch.tensor([directions[scene.relation] for scene in scenes], dtype=torch.float32)
    return axis * along[:, None] + axis.flip(-1) * across[:, None]


def render(scenes: Sequence[Scene], layout: Layout) -> Float[Tensor, "batch 3 rows columns"]:
    """Return RGB pictures in [0, 1]."""
    pixels = pixel_centres()
    ground = torch.tensor([PALETTE[scene.background] for scene in scenes])[:, :, None, None]
    light = torch.einsum("byxc,bc->byx", (pixels / SIZE - 0.5).expand(len(scenes), -1, -1, -1), 2 * layout.shading)
    for x, y, radius, strength in (stain.unbind(-1) for stain in layout.stains.unbind(1)):
        distance2 = (pixels[..., 0] - x[:, None, None]) ** 2 + (pixels[..., 1] - y[:, None, None]) ** 2
        light = light + strength[:, None, None] * torch.exp(-distance2 / (2 * (radius / 1.5)[:, None, None] ** 2))
    picture = ground + light[:, None]
    for slot in range(2):
        things = _in_slot(scenes, slot)
        shapes = torch.tensor([SHAPES.index(thing.shape) for thing in things])
        inks = torch.tensor([PALETTE[thing.colour] for thing in things])[:, :, None, None]
        local = pixels - layout.centre[:, slot, None, None, :]
        distance = signed_distance(local, layout.radius[:, slot], shapes)
        coverage = (0.5 - distance / layout.softness[:, None, None]).clamp(0, 1)
        coverage = coverage * (layout.radius[:, slot, None, None] > 0)
        picture = torch.lerp(picture, inks.expand_as(picture), coverage[:, None])
    return picture.clamp(0, 1)


def signed_distance(
    local: Float[Tensor, "batch rows columns xy"], radius: Float[Tensor, " batch"], shapes: Tensor
) -> Float[Tensor, "batch rows columns"]:
    """Return the distance to the outline in pixels, negative inside; every shape fills the box [-radius, radius]^2."""
    r = radius[:, None, None]
    x, y = local[..., 0], local[..., 1]
    length = local.norm(dim=-1)
    box = torch.maximum(x.abs(), y.abs()) - r
    arms = torch.maximum(torch.minimum(x.abs(), y.abs()) - _CROSS_ARM * r, box)
    slope = 5**-0.5  # sides from (0, -r) to (+-r, r): normal (2, -1) / sqrt 5
    triangle = torch.maximum((2 * x.abs() - y - r) * slope, y - r)
    ring = torch.maximum(length - r, _RING_HOLE * r - length)
    every = torch.stack([length - r, box, triangle, arms, ring], dim=1)
    return every[torch.arange(len(shapes)), shapes]


def draw(scenes: Sequence[Scene], rng: torch.Generator, flaws: float = 1.0) -> Float[Tensor, "batch 3 rows columns"]:
    """Draw one picture a scene, RGB in [0, 1]; see `sample_layout` for `flaws`."""
    return render(scenes, sample_layout(scenes, rng, flaws))
