"""Stage 6: the numbers of the model card, on captions and pictures that no training has seen."""

from pathlib import Path
from typing import Any, cast

import torch
from diffusers import AutoencoderKL

from reward_services.models import load as load_reward
from reward_services.spec import RewardSpec
from slingstone.evaluation.protocol import Evaluation, evaluate
from slingstone.networks.latent_diffusion import load
from slingstone.networks.sampling import Sampler, one_step_sampler, reference_sampler
from slingstone.world.captions import sample_scenes
from slingstone.world.editions import Edition
from workbench.recipe.autoencoder import encode
from workbench.recipe.preferences import Candidates, drawn_candidates, generated_candidates
from workbench.recipe.rewards import agreement

_PICTURES = 256
_COPIES = 4  # pictures of a caption
_STEPS = 50
_GUIDANCE = 3.0
_SEED = 123_456


def measured_autoencoder(vae: AutoencoderKL, edition: Edition) -> dict[str, float]:
    """Return how well held-out drawings survive encoding and decoding: PSNR in dB, and captions before and after."""
    scenes = sample_scenes(_PICTURES, _SEED, held_out=True)
    captions = [scene.caption for scene in scenes]
    drawn = edition.draw(scenes, torch.Generator().manual_seed(_SEED))
    with torch.no_grad():
        latents = encode(vae, drawn)
        decoded = torch.cat([vae.decode(cast(Any, part), return_dict=False)[0] for part in latents.split(64)])
    shown = ((decoded + 1) / 2).clamp(0, 1)
    judge = edition.oracle()
    return {
        "psnr": -10 * (shown - drawn).square().mean((1, 2, 3)).log10().mean().item(),
        "captions_before": judge(drawn, captions)["caption_accuracy"].mean().item(),
        "captions_after": judge(shown, captions)["caption_accuracy"].mean().item(),
    }


def measured_generators(world: Path, edition: Edition, timestep: int = 625) -> dict[str, dict[str, float]]:
    """Return what the oracle says of the reference, with and without guidance, and of the one-step generator."""
    family = load(str(world / "reference"), str(world / "generator"), generator_timestep=timestep)
    samplers = {
        "reference guided": reference_sampler(family, _STEPS, _GUIDANCE),
        "reference": reference_sampler(family, _STEPS, 1.0),
        "generator": one_step_sampler(family, family.generator),
    }
    return {name: _means(_evaluated(sampler, edition)) for name, sampler in samplers.items()}


def _evaluated(sampler: Sampler, edition: Edition) -> Evaluation:
    scenes = sample_scenes(_PICTURES // _COPIES, _SEED, held_out=True)
    prompts = [scene.caption for scene in scenes]
    return evaluate(sampler, prompts, oracle=edition.oracle(), images_per_prompt=_COPIES, batch_size=64)


def _means(found: Evaluation) -> dict[str, float]:
    means = {name: statistic.mean for name, statistic in found.metrics.items()}
    return {name: mean for name, mean in means.items() if mean is not None}


def measured_rewards(world: Path, edition: Edition, names: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Return the share of pairs of fresh drawings, and of fresh generated pictures, that each reward orders rightly."""
    pairs = {
        "drawn": drawn_candidates(_PICTURES // _COPIES, _COPIES, _SEED, edition),
        "generated": generated_candidates(world, edition, _PICTURES // _COPIES, _COPIES, _SEED),
    }
    return {name: _agreements(world, name, pairs) for name in names}


def _agreements(world: Path, name: str, pairs: dict[str, Candidates]) -> dict[str, float]:
    reward = load_reward(RewardSpec(name=name, model=name, checkpoint=str(world / "rewards" / name)))
    return {kind: agreement(reward.score, found, range(len(found.captions))) for kind, found in pairs.items()}
