"""From a configuration to the objects of one rank: networks, engines, rewards, trainer, measurement."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from slingstone.config import KL, Experiment, Objective, PseudoHuber
from slingstone.data import PromptSampler
from slingstone.networks.adapters import Adapter, cast_frozen, sharing_copy, trained_part
from slingstone.networks.decoder import VaeDecoder, reward_decoder
from slingstone.networks.embeddings import EmbeddingStore, fingerprint
from slingstone.networks.latent_diffusion import load
from slingstone.networks.protocol import ImageDecoder, ModelFamily
from slingstone.networks.text import RememberingEncoder
from slingstone.objectives import divergence
from slingstone.prompts import read_prompts
from slingstone.runtime.assignment import Assignment
from slingstone.runtime.checkpoint import State
from slingstone.runtime.engine import build_engine
from slingstone.runtime.measure import Measure
from slingstone.runtime.rewards import clients, panel
from slingstone.trainer import StepSettings, Timesteps, Trainer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Parts:
    """What one rank trains and measures with.

    Attributes:
        trainer: takes the steps.
        state: all that a checkpoint holds.
        averaged: a generator of its own for evaluation and export; starts as the initial one.
        measure: the evaluations.
    """

    trainer: Trainer
    state: State
    averaged: nn.Module
    measure: Measure


def assemble(assignment: Assignment, rank: int, world: int, device: torch.device) -> Parts:
    """Load and build everything on one rank; the engines' construction is a collective."""
    run = assignment.experiment
    torch.manual_seed(run.seed)
    family = load_family(run, device)
    read = read_prompts(run.data.prompts, run.data.column)
    if not run.models.keep_text_encoder:
        encode_ahead(family, [*read, *held_out(run)], Path(run.storage) / "embeddings", rank, world)
    averaged = sharing_copy(family.generator).requires_grad_(False).eval()
    clip = run.training.max_grad_norm
    generator = build_engine(trained_part(family.generator), run.training.generator_optimizer, run.runtime, clip)
    assistant = build_engine(trained_part(family.assistant), run.training.assistant_optimizer, run.runtime, clip)
    asked = clients(run.rewards, device)
    prompts = PromptSampler(read, run.training.batch_size, rank, world, run.seed)
    trainer = Trainer(
        family=replace(family, decoder=_reward_decoder(run, family)),
        generator=generator,
        assistant=assistant,
        rewards=panel(run, asked),
        prompts=prompts,
        settings=step_settings(run, world),
        rng=torch.Generator(device).manual_seed(run.seed * 65537 + rank),
        generator_parameters=generator.named_parameters,
    )
    state = State(trainer, {"generator": generator, "assistant": assistant}, prompts, rank)
    measure = Measure(run.evaluation, family, asked, Path(assignment.directory) / "evaluation", rank, world)
    return Parts(trainer, state, averaged, measure)


def load_family(run: Experiment, device: torch.device) -> ModelFamily:
    """Return the networks of a run, the reference in the precision in which the engines will run the others."""
    models, lora = run.models, run.models.lora
    family = load(
        models.reference,
        models.generator,
        models.assistant,
        generator_timestep=models.generator_timestep,
        generator_input=models.generator_input,
        generator_noise_level=models.generator_noise_level,
        decode_chunk=models.decode_chunk,
        gradient_checkpointing=run.runtime.gradient_checkpointing,
        lora=lora and Adapter(lora.rank, float(lora.alpha or lora.rank), lora.target_modules),
        device=device,
    )
    # The divergence takes the small difference of assistant and reference: both must round alike.
    for part in (family.reference, *((family.generator, family.assistant) if lora else ())):
        cast_frozen(part, DTYPES[run.runtime.precision])
    return family


def held_out(run: Experiment) -> tuple[str, ...]:
    """Return the prompts of the evaluations."""
    return read_prompts(run.evaluation.prompts, run.evaluation.column)[: run.evaluation.num_prompts]


def encode_ahead(family: ModelFamily, prompts: Sequence[str], directory: Path, rank: int, world: int) -> None:
    """Have the ranks encode all prompts, each its share, and take the text encoders off the device; a collective."""
    encoder = family.text_encoder
    assert isinstance(encoder, RememberingEncoder)
    store = EmbeddingStore(directory, fingerprint(encoder))
    encoder.compute_into(store, ["", *prompts][rank::world])
    if dist.is_initialized():
        dist.barrier()
    encoder.leave_device()


def _reward_decoder(run: Experiment, family: ModelFamily) -> ImageDecoder:
    assert isinstance(family.decoder, VaeDecoder)
    dtype = DTYPES[run.models.reward_decoder_precision]
    return reward_decoder(family.decoder, run.models.reward_decoder, dtype, run.runtime.gradient_checkpointing)


def step_settings(run: Experiment, world: int) -> StepSettings:
    """Return the numbers of one step on one of `world` ranks."""
    objective, training = run.objective, run.training
    return StepSettings(
        batch_size=training.batch_size // world,
        world_size=world,
        generator_timesteps=Timesteps(objective.generator_timesteps.low, objective.generator_timesteps.high),
        assistant_timesteps=Timesteps(objective.assistant_timesteps.low, objective.assistant_timesteps.high),
        divergence=divergence.Divergence(
            distance=_distance(objective),
            guidance=divergence.Guidance(objective.guidance.kind, objective.guidance.scale),
            weighting=objective.weighting,
            flow=objective.flow,
            gradient=objective.gradient,
        ),
        reward_weight=objective.reward_weight,
        assistant_updates=training.assistant_updates,
        warmup_images=training.warmup_images,
        ema_half_life_images=training.ema_half_life_images,
        decode_chunk=run.models.decode_chunk,
    )


def _distance(objective: Objective) -> divergence.Distance:
    if isinstance(objective.distance, PseudoHuber):
        return divergence.PseudoHuber(objective.distance.constant, objective.distance.per)
    return divergence.IntegralKL() if isinstance(objective.distance, KL) else divergence.SquaredL2()
