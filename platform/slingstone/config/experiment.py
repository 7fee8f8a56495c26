"""The root of the tree, and the mistakes that only show between its sections."""

from collections.abc import Iterator
from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from slingstone.config.contradictions import Contradiction, refuse, shared_names
from slingstone.config.credentials import has_credentials, redacted
from slingstone.config.guard import Guard
from slingstone.config.paths import Storage
from slingstone.config.placement import Placement
from slingstone.config.recovery import Recovery
from slingstone.config.rewards import Rewards
from slingstone.config.tree import (
    Data,
    Evaluation,
    Models,
    Name,
    Objective,
    Runtime,
    Section,
    Tracking,
    Training,
)


class Experiment(Section):
    """One run, complete and nameable."""

    job: ClassVar[str] = "align"

    name: Name
    """The run writes under `<storage>/align/<name>`; the same name continues from its last checkpoint."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seeds weights, noise, timesteps and the order of prompts."""
    storage: Storage = "outputs"
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

    @property
    def pictures(self) -> int:
        """Pictures of a step on each worker."""
        return self.training.batch_size // self.runtime.num_workers

    @property
    def pictures_at_once(self) -> int:
        """Of them, those that the networks of a worker compute at a time."""
        return min(self.runtime.micro_batch_size or self.pictures, self.pictures)

    @model_validator(mode="after")
    def _agree(self) -> "Experiment":
        refuse(
            [
                *_run_contradictions(self),
                *_reward_contradictions(self),
                *_guard_contradictions(self),
                *_credentials(self),
            ]
        )
        return self


ALWAYS_MEASURED = (
    "diversity",
    "appearance/colourfulness",
    "appearance/contrast",
    "appearance/high_frequency",
    "seconds_per_image",
    "network_evaluations",
)
"""Numbers that every evaluation has, beside its rewards and what the oracle names."""


_CLAIMS = ("count", "colour", "shape", "size", "relation", "background", "one_object", "two_objects")
_JUDGED = ("utility", "caption_accuracy", "sharpness", "cleanliness", *(f"accuracy/{claim}" for claim in _CLAIMS))
ORACLE_MEASURED = {"scenes": (*_JUDGED, "composition"), "open_scenes": (*_JUDGED, "purity", "regularity")}
"""Numbers of an evaluation with an oracle, by its name."""


def metrics(experiment: Experiment) -> list[str]:
    """Return the names of the numbers that the run's evaluations have."""
    oracle = experiment.evaluation.oracle
    by_oracle = ORACLE_MEASURED[oracle] if oracle else ()
    return [*(f"rewards/{entry.name}" for entry in experiment.rewards.services), *ALWAYS_MEASURED, *by_oracle]


def measured(experiment: Experiment, metric: str) -> bool:
    """Tell whether the run's evaluations have a number of this name."""
    return metric in metrics(experiment)


def trained_on(experiment: Experiment, metric: str) -> bool:
    """Tell whether the generator is trained for the number of this name."""
    names = [f"rewards/{entry.name}" for entry in experiment.rewards.services if entry.weight > 0]
    return experiment.objective.reward_weight > 0 and metric in names


def _run_contradictions(experiment: Experiment) -> Iterator[Contradiction]:
    """Yield what is wrong between the sections that say how the run trains; every value alone is valid by now."""
    training, objective, runtime = experiment.training, experiment.objective, experiment.runtime
    share, deepspeed = experiment.placement.trainer_gpu_share, runtime.engine == "deepspeed"
    if training.batch_size % runtime.num_workers:
        example = -(-training.batch_size // runtime.num_workers) * runtime.num_workers
        message = (
            f"does not divide by runtime.num_workers = {runtime.num_workers}; take a multiple, for example {example}"
        )
        yield Contradiction("training.batch_size", training.batch_size, message)
    if runtime.compile == "blocks" and deepspeed and runtime.zero_stage == 3:
        message = (
            "would compile blocks whose weights zero_stage 3 gathers in between; set compile: none, or another stage"
        )
        yield Contradiction("runtime.compile", "blocks", message)
    if training.warmup_images >= training.num_images:
        message = (
            f"leaves nothing to train the generator; make it less than training.num_images = {training.num_images}"
        )
        yield Contradiction("training.warmup_images", training.warmup_images, message)
    for side in ("generator_timesteps", "assistant_timesteps"):
        steps = getattr(objective, side)
        if steps.low > steps.high:
            yield Contradiction(f"objective.{side}.low", steps.low, f"is above high = {steps.high}; swap them")
    if runtime.offload == "cpu" and not (deepspeed and runtime.zero_stage):
        message = "needs sharded optimizer states; set engine: deepspeed and zero_stage 1, 2 or 3, or offload: none"
        yield Contradiction("runtime.offload", "cpu", message)
    if share < 1 and not runtime.use_gpu:
        message = "has no GPU to share; set runtime.use_gpu: true"
        yield Contradiction("placement.trainer_gpu_share", share, message)
    if experiment.models.lora is not None and deepspeed and runtime.zero_stage == 3:
        remedy = "set zero_stage 0, 1 or 2, which shard the adapters' gradients and optimizer"
        yield Contradiction("runtime.zero_stage", 3, f"would shard only the adapters of models.lora; {remedy}")
    if runtime.precision == "bf16" and deepspeed and runtime.zero_stage == 0:
        message = "would accumulate gradients in bf16 at zero_stage 0; set zero_stage 1, 2 or 3, or engine: torch"
        yield Contradiction("runtime.precision", "bf16", message)


def _reward_contradictions(experiment: Experiment) -> Iterator[Contradiction]:
    """Yield what is wrong between the keys of the rewards, and a weight without any."""
    rewards, weight = experiment.rewards, experiment.objective.reward_weight
    if rewards.backend == "http" and rewards.url is None:
        yield Contradiction("rewards.url", None, "is needed by backend: http; give the proxy's, http://host:8000")
    if rewards.backend != "http" and rewards.url is not None:
        remedy = "set backend: http, or leave the url out"
        yield Contradiction("rewards.url", rewards.url, f"is not used by backend: {rewards.backend}; {remedy}")
    if rewards.backend == "http" and rewards.lifecycle == "managed":
        message = "cannot deploy what is reached over HTTP; set it to external"
        yield Contradiction("rewards.lifecycle", "managed", message)
    yield from shared_names("rewards.services", rewards.services)
    for entry in rewards.services:
        if entry.application is not None and (rewards.lifecycle == "managed" or rewards.backend == "in_process"):
            message = "names a service that runs already; leave it out, or set lifecycle: external and backend: serve"
            yield Contradiction(f"rewards.services.{entry.name}.application", entry.application, message)
    if weight > 0 and not any(entry.weight > 0 for entry in rewards.services):
        remedy = "list a service with weight > 0 in rewards.services, or set reward_weight to 0"
        yield Contradiction("objective.reward_weight", weight, f"has no reward to weigh; {remedy}")


def _guard_contradictions(experiment: Experiment) -> Iterator[Contradiction]:
    """Yield numbers that are named and that no evaluation has, and a signal that would reward hacking."""
    guard, registry = experiment.guard, experiment.tracking.registry
    named = {f"guard.rules.{place}": rule for place, rule in enumerate(guard.rules)}
    named |= {"guard.best": guard.best, "tracking.registry": registry}
    wanted = {f"{path}.metric": entry.metric for path, entry in named.items() if entry is not None}
    wanted |= {"training.keep_best": experiment.training.keep_best}
    for path, metric in wanted.items():
        if metric is not None and not measured(experiment, metric):
            names = ", ".join(metrics(experiment))
            yield Contradiction(path, metric, f"is in no evaluation of this run; it has {names}")
    if guard.best is not None and trained_on(experiment, guard.best.metric):
        remedy = "hold it out with weight 0, or name another number"
        yield Contradiction("guard.best.metric", guard.best.metric, f"is trained on; {remedy}")
    if guard.rolls_back and guard.best is None:
        remedy = "name a held-out number, such as {metric: diversity}"
        yield Contradiction("guard.best", None, f"is needed by action: roll_back; {remedy}")


def _credentials(experiment: Experiment) -> Iterator[Contradiction]:
    """Yield what would carry a password or token into the files, logs and params that show the configuration."""
    bucket = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    for path, value, variables in (
        ("tracking.uri", experiment.tracking.uri, "MLFLOW_TRACKING_URI, or MLFLOW_TRACKING_USERNAME and _PASSWORD"),
        ("rewards.url", experiment.rewards.url, "REWARD_SERVICES_TOKEN"),
        ("recovery.checkpoints", experiment.recovery.checkpoints, bucket),
        ("storage", experiment.storage, bucket),
    ):
        if value and has_credentials(value):
            shown = redacted(value)
            message = f"holds credentials; leave them out and set {variables} in the environment"
            yield Contradiction(path, shown, message)
