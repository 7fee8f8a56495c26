"""The fitting of a reward to votes, as one frozen tree."""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from slingstone.config.contradictions import Contradiction, refuse, shared_names
from slingstone.config.paths import PathText, Storage
from slingstone.config.placement import Placement
from slingstone.config.recovery import Recovery
from slingstone.config.rewards import Rewards
from slingstone.config.tree import Name, Optimizer, Runtime, Section, Tracking


class Start(Section):
    """The reward that is fitted."""

    model: Literal["pickscore", "hps", "imagereward"]
    """Architecture and layout."""
    checkpoint: PathText
    """Directory, file or hub id, published or fitted before."""
    tokenizer: PathText | None = None
    """Directory or hub id; by default beside the weights, else the published one."""
    preprocess: Literal["exact", "smooth"] = "exact"
    """As in `rewards.services`; take the one with which it will be served."""


class Votes(Section):
    """Whose choices it learns."""

    train: PathText
    """A file or folder of votes, or a dataset of the hub: what `slingstone votes` reads."""
    test: PathText | None = None
    """Held-out votes, of other prompts; null holds a share of `train` out."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the prompts that is held out where there is no `test`."""
    limit: PositiveInt | None = None
    """Votes that are trained on, from the start of `train`; null is all."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """What a row that cannot be read costs: `skip` leaves it out and says how many there were."""


class Learns(Section):
    """Which of the weights learn."""

    kind: Literal["all", "last_blocks", "head", "lora"] = "all"
    """`head`: projections and temperature of a CLIP, the MLP of ImageReward; `last_blocks`: that, and the last blocks
    of the towers; `lora`: adapters of low rank in the towers, merged at the end."""
    vision_blocks: NonNegativeInt = 0
    """Of the picture's tower, counted from its end, for `last_blocks`."""
    text_blocks: NonNegativeInt = 0
    """Of the prompt's."""
    rank: PositiveInt = 16
    """Of the adapters, for `lora`."""


class Ensemble(Section):
    """Several heads on one tower, each fitted to votes drawn anew: where they differ, none is to be trusted."""

    heads: Annotated[int, Field(ge=2, le=64)] = 5
    """How many."""
    spread_weight: NonNegativeFloat = 1.0
    """The reward is the heads' mean minus so many times their standard deviation."""


class Fit(Section):
    """How long and how fast, in votes."""

    num_votes: PositiveInt
    """Length; one step counts `batch_size`."""
    batch_size: PositiveInt
    """Votes a step over all workers; must divide by `runtime.num_workers` times `accumulate`."""
    accumulate: PositiveInt = 1
    """Parts in which each worker computes its share of a step: more need less memory."""
    optimizer: Optimizer
    """Of what learns."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are clipped to this norm."""
    validate_every_votes: PositiveInt
    """How often the held-out votes are scored and a checkpoint is made; the best one is what comes out."""
    patience: PositiveInt | None = None
    """Validations in a row without a better one that end the fit; null goes on to its end."""
    keep_checkpoints: PositiveInt = 1
    """Beside the best."""


class RewardFit(Section):
    """One fitting of a reward to votes, complete and nameable."""

    job: ClassVar[str] = "reward"

    name: Name
    """Results lie under `<storage>/reward/<name>`; the same name continues from the last checkpoint."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Of the order of votes, dropout, and the heads of an ensemble."""
    storage: Storage = "outputs"
    """Directory under which everything is written; all nodes must see it."""
    reward: Start
    """Where it starts."""
    votes: Votes
    """What it learns from."""
    loss: Literal["soft", "logistic", "davidson"] = "soft"
    """`soft`: cross-entropy of the pair's softmax with the vote's shares, half each for a tie (PickScore, HPS);
    `logistic`: -log sigmoid of the difference, ties left out (ImageReward); `davidson`: a tie is an outcome of its own,
    whose odds are learnt."""
    weighting: Literal["vote", "prompt"] = "vote"
    """`prompt` divides each vote by how many its prompt has."""
    learns: Learns = Learns()
    """Which weights."""
    ensemble: Ensemble | None = None
    """Several heads in the place of one; null is one."""
    training: Fit
    """How long and how fast."""
    runtime: Runtime = Runtime(engine="torch")
    """Where it happens."""
    placement: Placement = Placement()
    """On which nodes of the cluster."""
    tracking: Tracking = Tracking()
    """Where MLflow keeps it."""
    recovery: Recovery = Recovery()
    """What it does when something around it fails."""

    @property
    def rewards(self) -> Rewards:
        """None: the driver deploys nothing."""
        return Rewards()

    @model_validator(mode="after")
    def _agree(self) -> "RewardFit":
        refuse(_contradictions(self))
        return self


def _contradictions(fit: RewardFit) -> Iterator[Contradiction]:
    training, runtime, learns = fit.training, fit.runtime, fit.learns
    parts = runtime.num_workers * training.accumulate
    if training.batch_size % parts:
        message = f"does not divide by runtime.num_workers * training.accumulate = {parts}; take a multiple of it"
        yield Contradiction("training.batch_size", training.batch_size, message)
    blocks = learns.vision_blocks + learns.text_blocks
    if (learns.kind == "last_blocks") != (blocks > 0):
        message = "goes with vision_blocks or text_blocks above 0, and they with it; set both or neither"
        yield Contradiction("learns.kind", learns.kind, message)
    if fit.ensemble is not None and learns.kind != "head":
        message = "shares one tower, so that only heads can learn; set learns: {kind: head}"
        yield Contradiction("ensemble.heads", fit.ensemble.heads, message)
    if learns.kind != "all" and runtime.engine == "deepspeed" and runtime.zero_stage == 3:
        remedy = "set zero_stage 0, 1 or 2, or engine: torch"
        yield Contradiction("runtime.zero_stage", 3, f"would shard only what learns; {remedy}")
    if runtime.precision == "bf16" and runtime.engine == "deepspeed" and runtime.zero_stage == 0:
        message = "would accumulate gradients in bf16 at zero_stage 0; set zero_stage 1, 2 or 3, or engine: torch"
        yield Contradiction("runtime.precision", "bf16", message)


class VoteFile(Section):
    """A set of votes."""

    name: Name
    """What tables call it, such as `test`."""
    path: PathText
    """A file or folder of votes, or a dataset of the hub."""


class RewardComparison(Section):
    """Rewards side by side on votes, complete and nameable."""

    kind: Literal["rewards"]
    """Says that rewards are compared, and no models."""
    name: Name
    """Results lie under `<storage>/evaluate/<name>`."""
    storage: Storage = "outputs"
    """Directory under which everything is written."""
    votes: Annotated[tuple[VoteFile, ...], Field(min_length=1)]
    """What they are judged by."""
    rewards: Rewards
    """Who is judged, loaded in this process; weights mean nothing here."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """As in a fitting."""
    sheet_pairs: PositiveInt = 8
    """Pairs on the sheet of those on which a reward is most wrong."""
    tracking: Tracking = Tracking()
    """Where MLflow keeps the results."""

    @model_validator(mode="after")
    def _agree(self) -> "RewardComparison":
        refuse([*shared_names("votes", self.votes), *_in_process(self)])
        return self


def _in_process(comparison: RewardComparison) -> Iterator[Contradiction]:
    if comparison.rewards.backend != "in_process":
        remedy = "votes are judged in this process; set it to in_process"
        yield Contradiction("rewards.backend", comparison.rewards.backend, remedy)
    if not comparison.rewards.services:
        yield Contradiction("rewards.services", (), "names no reward; list at least one")
