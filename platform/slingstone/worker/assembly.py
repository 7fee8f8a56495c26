"""From an experiment to the objects of one rank: networks, engines, rewards, trainer, measurement."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from slingstone.checkpoints.state import State
from slingstone.config import EMBEDDINGS_LIMIT, KL, Experiment, Objective, PseudoHuber
from slingstone.engines.engine import build_engine, trained
from slingstone.engines.family import arrange, load_family, round_frozen
from slingstone.engines.masters import gather
from slingstone.networks.adapters import called, sharing_copy, trained_part
from slingstone.networks.decoder import VaeDecoder, reward_decoder
from slingstone.networks.embeddings import EmbeddingStore, fingerprint, stored_bytes
from slingstone.networks.protocol import DTYPES, ModelFamily
from slingstone.networks.text import PromptEncoder
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
        names = trained(self.trainer.generator.module)
        weights = {name: weight for name, weight in self.averaged.named_parameters() if name in names}
        gather(self.trainer.ema.fragments, weights)


def assemble(assignment: Assignment[Experiment], rank: int, world: int, device: torch.device) -> Parts:
    """Load and build everything on one rank; the engines' construction is a collective."""
    experiment = assignment.experiment
    models, training, runtime = experiment.models, experiment.training, experiment.runtime
    torch.manual_seed(experiment.seed)
    family = load_family(experiment, device)
    # Before any weight is rounded, the frozen ones too.
    alone = runtime.precision != "fp32"
    averaged = (copy.deepcopy if alone else sharing_copy)(family.generator).requires_grad_(False).eval()
    parts = [trained_part(network, runtime.merge_adapters) for network in (family.generator, family.assistant)]
    round_frozen(family, experiment)
    assert isinstance(family.decoder, VaeDecoder)
    decoder = reward_decoder(
        family.decoder,
        models.reward_decoder,
        DTYPES[models.reward_decoder_precision],
        runtime.gradient_checkpointing and not runtime.keep_decoder_graph,
    )
    arrange([family.reference, *chain(*map(called, parts))], decoder, runtime)
    texts = read_prompts(experiment.data.prompts, experiment.data.column)
    encoder = text_encoder(experiment, family, texts, rank, world)

    optimizers = training.generator_optimizer, training.assistant_optimizer
    generator, assistant = (
        build_engine(part, optimizer, runtime, training.max_grad_norm)
        for part, optimizer in zip(parts, optimizers, strict=True)
    )
    judges = clients(assignment.served or experiment.rewards, device)
    prompts = PromptSampler(texts, training.batch_size, rank, world, experiment.seed)
    trainer = Trainer(
        family=replace(family, decoder=decoder, text_encoder=encoder),
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


def text_encoder(
    experiment: Experiment, family: ModelFamily, texts: Sequence[str], rank: int, world: int
) -> PromptEncoder:
    """Return the encoder of the training prompts, in the networks' precision; a collective.

    Without `keep_text_encoder` all prompts are encoded now, each rank its share, and the weights leave the device;
    unless the embeddings are more than `EMBEDDINGS_LIMIT`. Prompts of evaluations are encoded in fp32, as an exported
    pipeline does it.
    """
    evaluated = family.text_encoder
    assert isinstance(evaluated, PromptEncoder)
    dtype = DTYPES[experiment.runtime.precision]
    rounding = evaluated.rounding(dtype)
    if experiment.models.keep_text_encoder:
        return rounding
    if stored_bytes(rounding.null(1), dtype) * len(set(texts)) > EMBEDDINGS_LIMIT:
        return rounding
    directory, name = Path(experiment.storage) / "embeddings", fingerprint(evaluated)
    held = ["", *held_out(experiment.evaluation)]
    for encoder, precision, prompts in ((evaluated, torch.float32, held), (rounding, dtype, ["", *texts])):
        store = EmbeddingStore(directory, name, precision, prompts)
        store.fill(encoder.encode, rank, world)
        encoder.read_from(store)
    if dist.is_initialized():
        dist.barrier()
    evaluated.cpu()
    return rounding


def step_settings(experiment: Experiment, world: int) -> StepSettings:
    """Return the numbers of one step on one of `world` ranks."""
    objective, training = experiment.objective, experiment.training
    return StepSettings(
        batch_size=training.batch_size // world,
        micro_batch_size=experiment.runtime.micro_batch_size or 0,
        joint_reference=experiment.runtime.joint_reference,
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
        decoder_graph="kept"
        if experiment.runtime.keep_decoder_graph or objective.gradient == "direct"
        else "recomputed",
        reward_weight=objective.reward_weight,
        assistant_updates=training.assistant_updates,
        warmup_images=training.warmup_images,
        ema_half_life_images=training.ema_half_life_images,
    )


def _distance(objective: Objective) -> divergence.Distance:
    if isinstance(objective.distance, PseudoHuber):
        return divergence.PseudoHuber(objective.distance.constant, objective.distance.per)
    return divergence.IntegralKL() if isinstance(objective.distance, KL) else divergence.SquaredL2()
