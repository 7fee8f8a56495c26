"""Candidates that come out of the reference and the one-step generator, for the rewards' second phase."""

from pathlib import Path

import torch
from tqdm import tqdm

from slingstone.networks.latent_diffusion import load
from slingstone.networks.sampling import Sampler, one_step_sampler, reference_sampler
from slingstone.world.captions import sample_scenes
from workbench.recipe.preferences import Candidates, judged

_BATCH = 64
_REFERENCE_STEPS = 10


def generated_candidates(world: Path, count: int, per_caption: int, seed: int, timestep: int = 625) -> Candidates:
    """Sample candidates of training captions: a third each from the generator, reference and guided reference."""
    family = load(str(world / "reference"), str(world / "generator"), generator_timestep=timestep)
    samplers = [
        one_step_sampler(family, family.generator),
        reference_sampler(family, _REFERENCE_STEPS, 1.0, "dpmsolver++"),
        reference_sampler(family, _REFERENCE_STEPS, 3.0, "dpmsolver++"),
    ]
    captions = [scene.caption for scene in sample_scenes(count, seed, held_out=False)]
    slots = [_sample(samplers[slot % 3], captions, seed + slot) for slot in range(per_caption)]
    return judged(captions, torch.stack(slots, dim=1))


def _sample(sampler: Sampler, captions: list[str], seed: int) -> torch.Tensor:
    starts = tqdm(range(0, len(captions), _BATCH), desc="generated candidates", mininterval=10)
    batches = (captions[start : start + _BATCH] for start in starts)
    seeds = iter(range(seed * len(captions), (seed + 1) * len(captions)))
    return torch.cat([sampler(batch, [next(seeds) for _ in batch]).images for batch in batches])
