"""An evaluation of several models: which, on what prompts, judged by whom."""

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from slingstone.config.contradictions import refuse, shared_names
from slingstone.config.paths import PathText, Storage
from slingstone.config.placement import Placement
from slingstone.config.rewards import Rewards
from slingstone.config.tree import Models, Name, Section, Tracking


class AlignedRun(Section):
    """What an alignment exported, sampled as the run itself sampled it: the same numbers to the digit."""

    kind: Literal["run"]
    name: Name
    """What tables call it."""
    run: PathText
    """Directory of the run, such as outputs/align/scenes."""
    parameters: str | None = None
    """As tables show it, such as 2.6B."""


class OneStep(Section):
    """A one-step generator as a run would start from it."""

    kind: Literal["generator"]
    name: Name
    """What tables call it."""
    models: Models
    """As in a run."""
    parameters: str | None = None
    """As tables show it, such as 2.6B."""


class Stock(Section):
    """Any pipeline under diffusers' own code."""

    kind: Literal["pipeline"]
    name: Name
    """What tables call it."""
    location: PathText
    """Pipeline directory or hub id."""
    steps: PositiveInt
    """Denoising steps."""
    guidance: NonNegativeFloat
    """`guidance_scale`, in the pipeline's own sense."""
    scheduler: str | None = None
    """Class of diffusers to take in the place of the pipeline's, such as LCMScheduler."""
    weights: PathText | None = None
    """File with a state dict for the pipeline's network, such as DMD2's UNet."""
    call: Annotated[dict[str, Any], Field(default_factory=dict)]
    """Further arguments of the pipeline's call, such as `timesteps: [399]` or `height: 1024`."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the weights."""
    parameters: str | None = None
    """As tables show it, such as 12B."""


Model = Annotated[AlignedRun | OneStep | Stock, Field(discriminator="kind")]


class PromptFile(Section):
    """A set of prompts."""

    name: Name
    """What tables call it."""
    path: PathText
    """A file in the formats of `data.prompts`; or HPSv2's benchmark, a folder of .json lists or one .json file."""
    column: str | None = None
    """As `data.column`."""
    groups: tuple[str, ...] = ()
    """Columns to break numbers down by, such as Category and Challenge of PartiPrompts, tag of GenEval."""
    num_prompts: PositiveInt | None = None
    """Prompts taken from the file, from its start; null is all."""
    published: Literal["parti", "hpsv2"] | None = None
    """Which of the paper's tables is shown beside the results, marked as its authors' numbers."""


class Features(Section):
    """What FID and KID are computed with; numbers of different features or pictures say nothing of each other."""

    kind: Literal["clip", "dinov2", "inception"]
    """Sort of extractor."""
    checkpoint: PathText
    """Directory, hub id or, for inception, a TorchScript file."""
    images: PathText
    """Folder of real pictures, .png or .jpg, at any depth."""
    resize: PositiveInt | None = None
    """Side to which the real pictures are cut square and resized first; null leaves them, all of one size."""


class Latency(Section):
    """How long a picture takes when nothing else runs: the whole call, text encoding included."""

    batches: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 8)
    """Pictures drawn at once."""
    repeats: PositiveInt = 5
    """Calls of each size after one that warms up; their median counts."""


class Actors(Section):
    """Where pictures are drawn; changes speed, not results."""

    num_workers: PositiveInt = 1
    """Processes that draw, each with a model of its own."""
    use_gpu: bool = False
    """One GPU a worker."""
    threads_per_worker: PositiveInt = 1
    """CPUs that each worker reserves and computes with."""
    open_cluster: bool = False
    """Whether it also runs on a Ray cluster without token authentication, where whoever reaches a port of it runs code
    as its user."""


class Comparison(Section):
    """One evaluation, complete and nameable."""

    name: Name
    """Results lie under `<storage>/evaluate/<name>`; the same name goes on where an interrupted evaluation was."""
    storage: Storage = "outputs"
    """Directory under which everything is written; all nodes must see it."""
    models: Annotated[tuple[Model, ...], Field(min_length=1)]
    """Whose pictures are judged."""
    prompts: Annotated[tuple[PromptFile, ...], Field(min_length=1)]
    """What they draw."""
    rewards: Rewards = Rewards()
    """Who judges; weights mean nothing here. Served rewards may share a pass between workers, which moves scores by
    rounding; `backend: in_process` gives the digits of a run with that backend."""
    images_per_prompt: PositiveInt = 1
    """Pictures of each prompt; two or more also measure diversity."""
    batch_size: PositiveInt = 64
    """Pictures drawn at once by each worker; another size moves numbers by rounding."""
    seed: int = 0
    """Seed of the noise."""
    oracle: Literal["scenes", "open_scenes"] | None = None
    """Ground truth, where the world has one."""
    diversity: Literal["coarse_pixel_rms", "pixel_rms"] = "coarse_pixel_rms"
    """Distance between pictures of the same prompt."""
    features: Features | None = None
    """Null measures neither FID nor KID."""
    latency: Latency | None = Latency()
    """Null measures neither latency nor memory."""
    sheet_prompts: PositiveInt = 8
    """Prompts of each contact sheet, from the set's start."""
    workers: Actors = Actors()
    """Where pictures are drawn."""
    placement: Placement = Placement()
    """On which nodes of the cluster."""
    tracking: Tracking = Tracking()
    """Where MLflow keeps the results."""

    @model_validator(mode="after")
    def _agree(self) -> "Comparison":
        refuse([*shared_names("models", self.models), *shared_names("prompts", self.prompts)])
        return self
