"""The root of the tree, and the mistakes that only show between its sections."""

from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from slingstone.config.guard import Guard
from slingstone.config.placement import Placement
from slingstone.config.recovery import Recovery
from slingstone.config.rewards import Rewards
from slingstone.config.tree import (
    Data,
    Evaluation,
    Models,
    Name,
    Objective,
    PathText,
    Runtime,
    Section,
    Tracking,
    Training,
)


class Experiment(Section):
    """One run, complete and nameable."""

    name: Name
    """The run writes under `<storage>/align/<name>`; the same name continues from its last checkpoint."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seeds weights, noise, timesteps and the order of prompts."""
    storage: PathText = "outputs"
    """Directory under which everything is written; all nodes must see it."""
    models: Models
    """Which checkpoints the run starts from."""
    objective: Objective
    """What the generator is trained for."""
    rewards: Rewards = Rewards()
    """Who judges the pictures."""
    data: Data
    """What the generator draws during training."""
    training: Training
    """How long and how fast."""
    runtime: Runtime = Runtime()
    """Where it happens."""
    placement: Placement = Placement()
    """On which nodes of the cluster."""
    evaluation: Evaluation
    """The measurement before, during and after."""
    guard: Guard = Guard()
    """When it is called off."""
    tracking: Tracking = Tracking()
    """Where MLflow keeps the run."""
    recovery: Recovery = Recovery()
    """What it does when something around it fails."""

    @model_validator(mode="after")
    def _agree(self) -> "Experiment":
        found = list(_contradictions(self))
        if found:
            raise PydanticCustomError("contradictions", "sections contradict each other", {"found": found})
        return self


class Contradiction(NamedTuple):
    """Two values that are right alone and wrong together."""

    path: str
    value: Any
    message: str


def _contradictions(experiment: Experiment) -> Iterator[Contradiction]:
    """Yield what is wrong between sections; every value alone is valid by now."""
    workers, batch_size = experiment.runtime.num_workers, experiment.training.batch_size
    if batch_size % workers:
        remedy = f"take a multiple, for example {-(-batch_size // workers) * workers}"
        yield Contradiction(
            "training.batch_size", batch_size, f"does not divide by runtime.num_workers = {workers}; {remedy}"
        )
    if experiment.training.warmup_images >= experiment.training.num_images:
        remedy = f"make it less than training.num_images = {experiment.training.num_images}"
        warmup = experiment.training.warmup_images
        yield Contradiction("training.warmup_images", warmup, f"leaves nothing to train the generator; {remedy}")
    for side in ("generator_timesteps", "assistant_timesteps"):
        low, high = getattr(experiment.objective, side).low, getattr(experiment.objective, side).high
        if low > high:
            yield Contradiction(f"objective.{side}.low", low, f"is above high = {high}; swap them")
    yield from _reward_contradictions(experiment.rewards)
    yield from _guard_contradictions(experiment)
    yield from _credentials(experiment)
    names = [entry.name for entry in experiment.rewards.services]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield Contradiction("rewards.services", name, "is the name of two services; rename one")
    trained_on = [entry for entry in experiment.rewards.services if entry.weight > 0]
    if experiment.objective.reward_weight > 0 and not trained_on:
        remedy = "list a service with weight > 0 in rewards.services, or set reward_weight to 0"
        yield Contradiction(
            "objective.reward_weight", experiment.objective.reward_weight, f"has no reward to weigh; {remedy}"
        )
    if experiment.runtime.offload == "cpu" and (
        experiment.runtime.engine == "torch" or experiment.runtime.zero_stage == 0
    ):
        remedy = "set engine: deepspeed and zero_stage 1, 2 or 3, or offload: none"
        yield Contradiction("runtime.offload", "cpu", f"needs sharded optimizer states; {remedy}")
    if experiment.placement.trainer_gpu_share < 1 and not experiment.runtime.use_gpu:
        share = experiment.placement.trainer_gpu_share
        yield Contradiction("placement.trainer_gpu_share", share, "has no GPU to share; set runtime.use_gpu: true")
    if experiment.models.lora is not None and (experiment.runtime.engine, experiment.runtime.zero_stage) == (
        "deepspeed",
        3,
    ):
        remedy = "set zero_stage 0, 1 or 2, which shard the adapters' gradients and optimizer"
        yield Contradiction("runtime.zero_stage", 3, f"would shard only the adapters of models.lora; {remedy}")
    if (
        experiment.runtime.precision == "bf16"
        and experiment.runtime.engine == "deepspeed"
        and experiment.runtime.zero_stage == 0
    ):
        remedy = "set zero_stage 1, 2 or 3, or engine: torch"
        yield Contradiction(
            "runtime.precision", "bf16", f"would accumulate gradients in bf16 at zero_stage 0; {remedy}"
        )


ALWAYS_MEASURED = (
    "diversity",
    "appearance/colourfulness",
    "appearance/contrast",
    "appearance/high_frequency",
    "seconds_per_image",
    "network_evaluations",
)
"""Numbers that every evaluation has, beside its rewards and what the oracle names."""


def measured(experiment: Experiment, metric: str) -> bool:
    """Tell whether the run's evaluations have a number of this name; an oracle may have any beside the rewards."""
    known = [*(f"rewards/{entry.name}" for entry in experiment.rewards.services), *ALWAYS_MEASURED]
    return metric in known or (experiment.evaluation.oracle is not None and not metric.startswith("rewards/"))


def trained_on(experiment: Experiment, metric: str) -> bool:
    """Tell whether the generator is trained for the number of this name."""
    names = [f"rewards/{entry.name}" for entry in experiment.rewards.services if entry.weight > 0]
    return experiment.objective.reward_weight > 0 and metric in names


def _guard_contradictions(experiment: Experiment) -> Iterator[Contradiction]:
    """Yield the numbers that guard and registry want and no evaluation has, and a signal that would reward hacking."""
    registry = experiment.tracking.registry
    registered = () if registry is None else (("tracking.registry.metric", registry.metric),)
    for path, metric in (*experiment.guard.metrics, *registered):
        if not measured(experiment, metric):
            names = ", ".join([*(f"rewards/{entry.name}" for entry in experiment.rewards.services), *ALWAYS_MEASURED])
            yield Contradiction(path, metric, f"is in no evaluation of this run; it has {names}")
    if experiment.guard.best is not None and trained_on(experiment, experiment.guard.best.metric):
        remedy = "hold it out with weight 0, or name another number"
        yield Contradiction("guard.best.metric", experiment.guard.best.metric, f"is trained on; {remedy}")
    if experiment.guard.rolls_back and experiment.guard.best is None:
        remedy = "name a held-out number, such as {metric: diversity}"
        yield Contradiction("guard.best", None, f"is needed by action: roll_back; {remedy}")


def _reward_contradictions(rewards: Rewards) -> Iterator[Contradiction]:
    """Yield what is wrong between the keys of the rewards."""
    if rewards.backend == "http" and rewards.url is None:
        yield Contradiction("rewards.url", None, "is needed by backend: http; give the proxy's, http://host:8000")
    if rewards.backend != "http" and rewards.url is not None:
        remedy = "set backend: http, or leave the url out"
        yield Contradiction("rewards.url", rewards.url, f"is not used by backend: {rewards.backend}; {remedy}")
    if rewards.backend == "http" and rewards.lifecycle == "managed":
        yield Contradiction(
            "rewards.lifecycle", "managed", "cannot deploy what is reached over HTTP; set it to external"
        )


def _credentials(experiment: Experiment) -> Iterator[Contradiction]:
    """Yield what would carry a password or token into the files, logs and params that show the configuration."""
    fields = {
        "tracking.uri": (experiment.tracking.uri, "MLFLOW_TRACKING_URI, or MLFLOW_TRACKING_USERNAME and _PASSWORD"),
        "rewards.url": (experiment.rewards.url, "REWARD_SERVICES_TOKEN"),
        "recovery.checkpoints": (experiment.recovery.checkpoints, "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        "storage": (experiment.storage, "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    }
    for path, (value, variables) in fields.items():
        scheme, separator, rest = (value or "").partition("://")
        if separator and "@" in rest.partition("/")[0]:
            shown = f"{scheme}://...@{rest.partition('@')[2]}"
            yield Contradiction(
                path, shown, f"holds credentials; leave them out and set {variables} in the environment"
            )
