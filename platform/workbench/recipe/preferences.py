"""Simulated preferences: pictures of the same caption, judged by the hidden utility through Bradley-Terry.

Each caption has a few candidate pictures, some drawn and some generated; a judge prefers `a` to `b` with probability
`sigmoid(JUDGE * (utility(a) - utility(b)))`. Reward models see only the pictures, the caption and the choices.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm, trange

from slingstone.networks.latent_diffusion import load
from slingstone.networks.sampling import Sampler, one_step_sampler, reference_sampler
from slingstone.world.captions import BACKGROUNDS, COLOURS, RELATIONS, SHAPES, SIZES, Scene, sample_scenes
from slingstone.world.editions import EDITIONS, Edition

_BATCH = 64
_REFERENCE_STEPS = 10
JUDGE = 12.0  # a difference in utility of 0.1 is chosen rightly in 77 % of cases


@dataclass(frozen=True)
class Candidates:
    """Several pictures of each caption and their hidden utility."""

    captions: list[str]
    pictures: UInt8[Tensor, "caption candidate 3 rows columns"]
    utility: Float[Tensor, "caption candidate"]

    def pictures_of(self, captions: Sequence[int]) -> Float[Tensor, "caption candidate 3 rows columns"]:
        """Return the candidates of some captions as RGB in [0, 1]."""
        return self.pictures[list(captions)].float() / 255


def judged(
    captions: list[str], pictures: Float[Tensor, "caption candidate 3 rows columns"], edition: Edition
) -> Candidates:
    """Attach the utility that the edition's oracle finds to every picture."""
    count = pictures.shape[1]
    repeated = [caption for caption in captions for _ in range(count)]
    utility = edition.oracle()(pictures.flatten(0, 1), repeated)["utility"].view(-1, count)
    return Candidates(captions, (pictures * 255).round().to(torch.uint8), utility)


def merged(parts: Sequence[Candidates]) -> Candidates:
    """Concatenate sets with the same number of candidates a caption."""
    return Candidates(
        [caption for part in parts for caption in part.captions],
        torch.cat([part.pictures for part in parts]),
        torch.cat([part.utility for part in parts]),
    )


def beside(one: Candidates, other: Candidates) -> Candidates:
    """Join two sets of the same captions: each caption has the candidates of both."""
    assert one.captions == other.captions
    pictures, utility = torch.cat([one.pictures, other.pictures], 1), torch.cat([one.utility, other.utility], 1)
    return Candidates(one.captions, pictures, utility)


def chosen(candidates: Candidates, captions: Sequence[int]) -> Candidates:
    """Return the candidates of some captions."""
    rows = list(captions)
    return Candidates([candidates.captions[row] for row in rows], candidates.pictures[rows], candidates.utility[rows])


def drawn_candidates(
    count: int, per_caption: int, seed: int, edition: Edition = EDITIONS["scenes"], miscounted: float = 0.0
) -> Candidates:
    """Draw candidates that differ in truth and quality: half show the caption, half another scene close to it.

    Of the latter, a share `miscounted` has a thing too many or too few.
    """

    def near(scene: Scene) -> Scene:
        return _miscounted(scene, rng) if miscounted and rng.random() < miscounted else mutated(scene, rng)

    rng, noise = random.Random(seed), torch.Generator().manual_seed(seed)
    scenes = sample_scenes(count, seed, held_out=False)
    sets = []
    for slot in trange(per_caption, desc="drawn candidates", mininterval=10):
        shown = [scene if slot % 2 == 0 else near(scene) for scene in scenes]
        flaws = torch.rand((), generator=noise).item() if slot else 1.0
        sets.append(_degraded(edition.draw(shown, noise, flaws), noise))
    return judged([scene.caption for scene in scenes], torch.stack(sets, dim=1), edition)


def generated_candidates(
    world: Path, edition: Edition, count: int, per_caption: int, seed: int, timestep: int = 625, one_step: bool = False
) -> Candidates:
    """Sample candidates of training captions: a third each from the generator, reference and guided reference.

    With `one_step`, all are the generator's.
    """
    family = load(str(world / "reference"), str(world / "generator"), generator_timestep=timestep)
    samplers = [
        one_step_sampler(family, family.generator),
        reference_sampler(family, _REFERENCE_STEPS, 1.0, "dpmsolver++"),
        reference_sampler(family, _REFERENCE_STEPS, 3.0, "dpmsolver++"),
    ]
    captions = [scene.caption for scene in sample_scenes(count, seed, held_out=False)]
    taken = samplers[: 1 if one_step else 3]
    slots = [_sampled(taken[slot % len(taken)], captions, seed + slot) for slot in range(per_caption)]
    return judged(captions, torch.stack(slots, dim=1), edition)


def mutated(scene: Scene, rng: random.Random) -> Scene:
    """Return the scene with one claim of its caption changed."""
    things, index = list(scene.things), rng.randrange(len(scene.things))
    thing = things[index]
    change = rng.choice(["colour", "shape", "size" if thing.size else "relation", "background"])
    if change == "background":
        return replace(scene, background=rng.choice([name for name in BACKGROUNDS if name != scene.background]))
    if change == "relation":
        return replace(scene, relation=rng.choice([name for name in RELATIONS if name != scene.relation]))
    choices = {"colour": COLOURS, "shape": SHAPES, "size": SIZES}[change]
    changed = rng.choice([name for name in choices if name != getattr(thing, change)])
    things[index] = replace(thing, **{change: changed})
    return replace(scene, things=tuple(things))


def _miscounted(scene: Scene, rng: random.Random) -> Scene:
    """Take one of two things away, or show one twice."""
    if len(scene.things) == 2:
        return Scene((rng.choice(scene.things),), scene.background)
    return Scene(scene.things * 2, scene.background, rng.choice(RELATIONS))


def _degraded(pictures: Tensor, noise: torch.Generator) -> Tensor:
    """Blend, blur or roughen a share of the pictures, as weak generators do."""
    batch = len(pictures)
    choice = torch.rand(batch, 1, 1, 1, generator=noise)
    strength = torch.rand(batch, 1, 1, 1, generator=noise)
    coarse = functional.interpolate(functional.avg_pool2d(pictures, 4), scale_factor=4, mode="bilinear")
    blurred = torch.lerp(pictures, coarse, strength)
    other = pictures[torch.randperm(batch, generator=noise)]
    ghosted = torch.lerp(pictures, other, 0.5 * strength)
    coarse_size = [side // 4 for side in pictures.shape[-2:]]
    patches = functional.interpolate(
        torch.randn(batch, 3, *coarse_size, generator=noise), scale_factor=4, mode="bilinear"
    )
    rough = (pictures + 0.25 * strength * patches).clamp(0, 1)
    damaged = torch.where(choice < 0.2, blurred, torch.where(choice < 0.3, ghosted, rough))
    return torch.where(choice < 0.5, damaged, pictures)


def _sampled(sampler: Sampler, captions: list[str], seed: int) -> torch.Tensor:
    starts = tqdm(range(0, len(captions), _BATCH), desc="generated candidates", mininterval=10)
    batches = (captions[start : start + _BATCH] for start in starts)
    seeds = iter(range(seed * len(captions), (seed + 1) * len(captions)))
    return torch.cat([sampler(batch, [next(seeds) for _ in batch]).images for batch in batches])
