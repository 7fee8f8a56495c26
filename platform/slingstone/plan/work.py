"""Arithmetic of one step, in forward passes of the networks and in FLOPs; a multiply-add counts two."""

from dataclasses import dataclass
from pathlib import Path

from slingstone.config import KL, Experiment, RewardEntry
from slingstone.plan.published_sizes import PUBLISHED, Work

REWARDS: dict[str, float] = {
    "pickscore": 680.0e9 + 47.1e9,
    "hps": 680.0e9 + 47.1e9,
    "hps_v2": 680.0e9 + 47.1e9,
    "clip_score": 330.5e9 + 13.3e9,
    "aesthetic": 330.5e9,
    "imagereward": 250.0e9 + 20e9,
}
"""FLOPs of a picture's score and gradient: the image tower (ViT-H/14, ViT-L/14, BLIP's ViT-L/16, all at 224 px) forward
and back to its input, and the text tower forward."""


@dataclass(frozen=True)
class Passes:
    """What one step costs a picture, in forward passes.

    A backward pass to the input costs one, to input and weights two; gradient checkpointing adds a forward pass.

    Attributes:
        assistant: all updates of the assistant, in passes of the network.
        generator: the generator's forward and backward pass.
        divergence: the score networks; this is what the rewards' time hides behind.
        decoder: in passes of the decoder.
    """

    assistant: int
    generator: int
    divergence: int
    decoder: int

    @property
    def network(self) -> int:
        """Passes of the denoising network."""
        return self.assistant + self.generator + self.divergence


def passes(experiment: Experiment) -> Passes:
    """Return the passes of one step after the warm-up.

    Without the assistant's updates: DMD's KL 6, direct 9, recomputed 12 with inner guidance.
    """
    objective, runtime = experiment.objective, experiment.runtime
    again, forward = int(runtime.gradient_checkpointing), 2 if objective.gradient == "recomputed" else 1
    # Of an adapted network nearly all weights are frozen, and have no gradient.
    trained = again + (2 if experiment.models.lora else 3)
    drawn_twice = experiment.pictures_at_once < experiment.pictures
    return Passes(
        assistant=experiment.training.assistant_updates * (1 + trained),
        generator=trained + drawn_twice,
        divergence=(3 if objective.guidance.scale else 2) + score_graphs(experiment) * (forward + again),
        decoder=(2 if runtime.keep_decoder_graph else forward + 1 + again) if trained_on(experiment) else 0,
    )


def useful_passes(experiment: Experiment) -> Passes:
    """Return the passes that the algorithm asks for, with enough memory: nothing is computed twice."""
    objective = experiment.objective.model_copy(update={"gradient": "direct"})
    roomy = {"gradient_checkpointing": False, "micro_batch_size": None}
    runtime = experiment.runtime.model_copy(update=roomy)
    return passes(experiment.model_copy(update={"objective": objective, "runtime": runtime}))


def score_graphs(experiment: Experiment) -> int:
    """Return how many score networks are differentiated in a generator step."""
    objective = experiment.objective
    if isinstance(objective.distance, KL) or objective.flow == "detach_networks":
        return 0
    if objective.flow == "detach_distance":
        return 1
    return 3 if objective.guidance.kind == "inner" and objective.guidance.scale else 2


def trained_on(experiment: Experiment) -> list[RewardEntry]:
    """Return the rewards that every step asks; held-out ones are only asked by evaluations."""
    return [
        entry for entry in experiment.rewards.services if entry.weight > 0 and experiment.objective.reward_weight > 0
    ]


def step_flops(experiment: Experiment, work: Work) -> float:
    """Return the FLOPs of one picture's step on the trainers."""
    counted = passes(experiment)
    return counted.network * work.network + counted.decoder * work.decoder


def work_of(experiment: Experiment) -> Work:
    """Return the FLOPs of a run's networks without loading them.

    Raises:
        ValueError: nothing is known of them.
    """
    reference = experiment.models.reference
    if Path(reference).is_dir():
        from slingstone.networks.footprint import forward_flops, picture_side

        network, decoder = forward_flops(Path(reference))
        return Work(float(network), float(decoder), picture_side(Path(reference)))
    if reference not in PUBLISHED:
        known = ", ".join(PUBLISHED)
        raise ValueError(f"models.reference = {reference!r}: is no directory and in no table; known are {known}")
    return PUBLISHED[reference].work
