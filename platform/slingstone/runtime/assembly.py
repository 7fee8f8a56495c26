"""From a configuration to the objects of one rank: networks, engines, rewards, trainer, measurement."""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from slingstone.config import KL, Experiment, Objective, PseudoHuber
from slingstone.data import PromptSampler
from slingstone.networks.latent_diffusion import load
from slingstone.objectives import divergence
from slingstone.prompts import read_prompts
from slingstone.runtime.assignment import Assignment
from slingstone.runtime.checkpoint import State
from slingstone.runtime.engine import build_engine
from slingstone.runtime.measure import Measure
from slingstone.runtime.rewards import clients, panel
from slingstone.trainer import StepSettings, Timesteps, Trainer


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
    models = run.models
    family = load(
        models.reference,
        models.generator,
        models.assistant,
        generator_timestep=models.generator_timestep,
        generator_input=models.generator_input,
        generator_noise_level=models.generator_noise_level,
        decode_chunk=models.decode_chunk,
        device=device,
    )
    averaged = copy.deepcopy(family.generator).requires_grad_(False).eval()
    clip = run.training.max_grad_norm
    generator = build_engine(family.generator, run.training.generator_optimizer, run.runtime, clip)
    assistant = build_engine(family.assistant, run.training.assistant_optimizer, run.runtime, clip)
    asked = clients(run.rewards, device)
    read = read_prompts(run.data.prompts, run.data.column)
    prompts = PromptSampler(read, run.training.batch_size, rank, world, run.seed)
    trainer = Trainer(
        family=family,
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
