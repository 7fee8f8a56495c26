"""From an experiment to the objects of one rank: networks, engines, rewards, trainer, measurement."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from slingstone.checkpoints.state import State
from slingstone.config import KL, Experiment, Objective, Optimizer, PseudoHuber
from slingstone.engines.engine import ShardedEngine, build_engine
from slingstone.engines.family import load_family, round_frozen
from slingstone.engines.masters import gather
from slingstone.networks.adapters import sharing_copy, trained_part
from slingstone.networks.decoder import VaeDecoder, reward_decoder
from slingstone.networks.embeddings import EmbeddingStore, fingerprint
from slingstone.networks.protocol import DTYPES, ModelFamily
from slingstone.networks.text import RememberingEncoder
from slingstone.objectives import divergence
from slingstone.prompts.files import read_prompts
from slingstone.prompts.sampler import PromptSampler
from slingstone.step.trainer import StepSettings, Timesteps, Trainer
from slingstone.worker.assignment import Assignment
from slingstone.worker.measure import Measure, held_out
from slingstone.worker.rewards import clients, panel


@dataclass(frozen=True)
class Parts:
    """What one rank trains and measures with.

    Attributes:
        averaged: a generator of its own in fp32, the initial one until `average` is called. What is evaluated, exported
            and registered is this.
    """

    trainer: Trainer
    state: State
    averaged: nn.Module
    measure: Measure

    def average(self) -> None:
        """Put the trainer's average, unrounded, into `averaged`; a collective."""
        trained = {name for name, weight in self.trainer.generator.module.named_parameters() if weight.requires_grad}
        weights = {name: weight for name, weight in self.averaged.named_parameters() if name in trained}
        gather(self.trainer.ema.fragments, weights)


def assemble(assignment: Assignment, rank: int, world: int, device: torch.device) -> Parts:
    """Load and build everything on one rank; the engines' construction is a collective."""
    experiment = assignment.experiment
    models, training = experiment.models, experiment.training
    torch.manual_seed(experiment.seed)
    family = load_family(experiment, device)
    # Before any weight is rounded, the frozen ones too.
    alone = experiment.runtime.precision != "fp32"
    averaged = (copy.deepcopy if alone else sharing_copy)(family.generator).requires_grad_(False).eval()
    round_frozen(family, experiment)
    texts = read_prompts(experiment.data.prompts, experiment.data.column)
    if not models.keep_text_encoder:
        evaluated = held_out(experiment.evaluation)
        encode_ahead(family, [*texts, *evaluated], Path(experiment.storage) / "embeddings", rank, world)

    def engine(network: nn.Module, optimizer: Optimizer) -> ShardedEngine:
        return build_engine(trained_part(network), optimizer, experiment.runtime, training.max_grad_norm)

    generator = engine(family.generator, training.generator_optimizer)
    assistant = engine(family.assistant, training.assistant_optimizer)
    judges = clients(experiment.rewards, device)
    prompts = PromptSampler(texts, training.batch_size, rank, world, experiment.seed)
    assert isinstance(family.decoder, VaeDecoder)
    decoder = reward_decoder(
        family.decoder,
        models.reward_decoder,
        DTYPES[models.reward_decoder_precision],
        experiment.runtime.gradient_checkpointing,
    )
    trainer = Trainer(
        family=replace(family, decoder=decoder),
        generator=generator,
        assistant=assistant,
        rewards=panel(experiment, judges),
        prompts=prompts,
        settings=step_settings(experiment, world),
        rng=torch.Generator(device).manual_seed(experiment.seed * 65537 + rank),
    )
    state = State(trainer, {"generator": generator, "assistant": assistant}, prompts, rank)
    measure = Measure(experiment.evaluation, family, judges, Path(assignment.directory) / "evaluation", rank, world)
    return Parts(trainer, state, averaged, measure)


def encode_ahead(family: ModelFamily, prompts: Sequence[str], directory: Path, rank: int, world: int) -> None:
    """Have the ranks encode all prompts, each its share, and take the text encoders off the device; a collective."""
    encoder = family.text_encoder
    assert isinstance(encoder, RememberingEncoder)
    store = EmbeddingStore(directory, fingerprint(encoder))
    encoder.compute_into(store, ["", *prompts][rank::world])
    if dist.is_initialized():
        dist.barrier()
    encoder.leave_device()


def step_settings(experiment: Experiment, world: int) -> StepSettings:
    """Return the numbers of one step on one of `world` ranks."""
    objective, training = experiment.objective, experiment.training
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
    )


def _distance(objective: Objective) -> divergence.Distance:
    if isinstance(objective.distance, PseudoHuber):
        return divergence.PseudoHuber(objective.distance.constant, objective.distance.per)
    return divergence.IntegralKL() if isinstance(objective.distance, KL) else divergence.SquaredL2()
