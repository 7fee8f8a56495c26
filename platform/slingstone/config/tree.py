"""A whole run as one frozen tree: what a YAML file, an override, a sweep trial and MLflow's params all name alike."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt
from pydantic import NonNegativeFloat as NonNegative

from slingstone.config.paths import PathText, StoreUri

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Timestep = Annotated[int, Field(ge=0)]
MetricName = Annotated[str, Field(min_length=1)]
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
"""The projections of every attention layer, as diffusers names them in all families."""


class Section(BaseModel):
    """A part of the tree: immutable, finite numbers only, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class Metric(Section):
    """A number of the evaluations by which one is better than another."""

    metric: MetricName
    """Such as `rewards/hps`, `utility`, `diversity`."""
    mode: Literal["max", "min"] = "max"
    """Which way is better."""


class Lora(Section):
    """Adapters of low rank in the place of whole networks: one frozen base, of which little is trained."""

    rank: PositiveInt = 64
    """Rank of every adapter; more can change more and takes proportionally more memory and disk."""
    alpha: PositiveFloat | None = None
    """Adapters are scaled by `alpha / rank`; null is the rank, so by 1."""
    target_modules: Annotated[tuple[str, ...], Field(min_length=1)] = ATTENTION
    """Layers that get an adapter, by the ends of their names: linear or convolutional; the default is attention."""


EMBEDDINGS_LIMIT = 64 * 2**30
"""Most bytes of embeddings that are stored; a prompt takes 315 KB for SDXL in bf16."""


class Models(Section):
    """Which checkpoints the run starts from, and how the generator is called."""

    reference: PathText
    """Frozen diffusion model, a diffusers pipeline directory or a hub id: what the generator is held close to."""
    generator: PathText
    """One-step generator to align: a diffusers pipeline directory or a hub id, or a file with its network's state dict
    or with a LoRA of the reference (as LCM's and Hyper-SD's), here or on the hub (`owner/repository/file`)."""
    assistant: PathText | None = None
    """Where the assistant score network starts, in the same forms; null starts it from the reference."""
    generator_timestep: Timestep
    """Timestep fed to the generator. It belongs to the checkpoint: another one ruins the initialisation."""
    generator_input: Literal["scaled", "unscaled"] = "scaled"
    """Whether the generator sees `sigma_T z` or `z`. It belongs to the checkpoint, too."""
    generator_noise_level: PositiveFloat | None = None
    """`sigma / alpha` of a checkpoint made for one between timesteps (PixArt: 2.5); null is the schedule's."""
    decode_chunk: PositiveInt = 16
    """Latents decoded (and differentiated) at once; smaller saves memory, larger saves time."""
    reward_decoder: PathText | None = None
    """Small autoencoder (diffusers' AutoencoderTiny, a directory or a hub id) that decodes for the rewards in training:
    far less memory, coarser reward gradients; null is the reference's own. Evaluations always use the latter."""
    reward_decoder_precision: Literal["fp32", "bf16"] = "fp32"
    """Type in which pictures are decoded for the rewards in training."""
    keep_text_encoder: bool = True
    """`false` encodes all prompts before the first step, keeps the embeddings under `<storage>/embeddings` for the next
    run, and takes the text encoders off the accelerator. More than `EMBEDDINGS_LIMIT` are encoded as training goes."""
    lora: Lora | None = None
    """Trains adapters of generator and assistant instead of their weights; null trains the weights. Networks that start
    from the reference, or from a LoRA of it, share its weights in memory; others keep frozen weights of their own."""


class PseudoHuber(Section):
    """`sqrt(|y|^2 + c^2) - c`: the paper's distance; every sample pulls with about the same force."""

    kind: Literal["pseudo_huber"]
    constant: PositiveFloat = 0.00054
    """`c` in eps space, as a multiple of `sqrt(C H W)`; below it the distance is quadratic."""
    per: Literal["sample", "element"] = "sample"
    """Whether the norm is over the whole sample or taken element by element."""


class SquaredL2(Section):
    """`|y|^2`: samples far from the reference pull hardest (SiD with alpha = 1)."""

    kind: Literal["squared_l2"]


class KL(Section):
    """Integral KL (Diff-Instruct++): the baseline, inclined to hack the reward."""

    kind: Literal["kl"]


class Guidance(Section):
    """Classifier-free guidance as an implicit reward."""

    kind: Literal["inner", "outer"] = "inner"
    """`inner` guides the reference inside the divergence, `outer` adds a term of its own."""
    scale: NonNegative = 0.0
    """`alpha_cfg`, additive: guidance omega = 1 + scale; 0 is none."""


class TimestepRange(Section):
    """Uniform over `low .. high`, both included."""

    low: Timestep
    """Smallest noise level drawn."""
    high: Timestep
    """Largest noise level drawn."""


class Objective(Section):
    """What the generator is trained for."""

    distance: Annotated[PseudoHuber | SquaredL2 | KL, Field(discriminator="kind")] = PseudoHuber(kind="pseudo_huber")
    """How far the generator's scores are from the reference's."""
    guidance: Guidance = Guidance()
    """Classifier-free guidance as an implicit reward."""
    reward_weight: NonNegative
    """`alpha_rew`, on the scale of a divergence summed over dimensions; 0 distils without rewards."""
    weighting: Literal["one", "sigma_over_alpha", "inverse_sigma"] = "one"
    """Weight of the noise levels in eps space."""
    gradient: Literal["direct", "recomputed"] = "direct"
    """`direct` is faster, `recomputed` holds the graph of one network at a time, also the decoder's; same gradient."""
    flow: Literal["full", "detach_distance", "detach_networks"] = "full"
    """Biased ablations: `detach_distance` is cheaper, and 25 % off the true gradient on the toy; `detach_networks` is
    the trap of running both networks without gradient: KL in disguise."""
    generator_timesteps: TimestepRange = TimestepRange(low=20, high=979)
    """Noise levels at which the divergence is measured."""
    assistant_timesteps: TimestepRange = TimestepRange(low=20, high=979)
    """Noise levels on which the assistant is trained."""


class Optimizer(Section):
    """Adam or AdamW with a linear warm-up."""

    kind: Literal["adam", "adamw"] = "adamw"
    """`adamw` decouples the weight decay."""
    lr: PositiveFloat
    """Learning rate after the warm-up."""
    betas: tuple[Probability, Probability] = (0.0, 0.999)
    """Decay of the first and second moment; a first of 0 is usual where two networks chase each other."""
    eps: PositiveFloat = 1e-8
    """Added to the root of the second moment."""
    weight_decay: NonNegative = 0.0
    """Per unit of learning rate for adamw, added to the gradient for adam."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Optimizer steps over which the learning rate rises linearly to `lr`."""
    cosine_steps: PositiveInt | None = None
    """Optimizer steps, warm-up included, after which it has fallen to 0 along a cosine; null keeps it at `lr`."""


class Training(Section):
    """How long and how fast, in images."""

    num_images: PositiveInt
    """Length of the run, warm-up included; one step counts `batch_size`."""
    warmup_images: Annotated[int, Field(ge=0)] = 0
    """Images on which the assistant alone is trained first, so that it knows the generator's score."""
    batch_size: PositiveInt
    """Images a step over all workers; must divide by `runtime.num_workers`."""
    assistant_updates: PositiveInt = 1
    """Assistant updates before each generator update (K_TA); more follow the generator closer and cost a step each."""
    generator_optimizer: Optimizer
    """Optimizer of the generator."""
    assistant_optimizer: Optimizer
    """Optimizer of the assistant; usually as fast as the generator's or faster."""
    max_grad_norm: PositiveFloat = 10.0
    """Gradients of either network are clipped to this norm."""
    ema_half_life_images: NonNegative = 50_000.0
    """Half-life of the averaged generator, the one that is evaluated and exported; 0 keeps the latest weights."""
    checkpoint_every_images: PositiveInt = 10_000
    """A crash loses at most this much; each checkpoint takes about 16 bytes a trained weight."""
    grid_every_images: PositiveInt = 10_000
    """How often the prompt grid is drawn and the averaged generator evaluated on an eighth of the prompts."""
    keep_checkpoints: PositiveInt = 2
    """Older checkpoints are deleted."""
    keep_best: MetricName | None = None
    """Number of the evaluations on the way by which the best checkpoint is kept beside the last ones, such as `utility`
    or `rewards/hps`; the highest is best. With it, each such evaluation has a checkpoint, too."""


class Runtime(Section):
    """Where the run happens; changes speed and memory, not the result."""

    num_workers: PositiveInt = 1
    """Data-parallel trainer processes."""
    use_gpu: bool = False
    """One GPU a worker instead of CPU threads."""
    threads_per_worker: PositiveInt = 1
    """CPUs that each worker reserves and computes with."""
    open_cluster: bool = False
    """Whether it also runs on a Ray cluster without token authentication, where whoever reaches a port of it runs code
    as its user."""
    engine: Literal["deepspeed", "torch"] = "deepspeed"
    """`torch` is plain data parallelism without sharding, for one or a few workers."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 2
    """What DeepSpeed shards over workers: 1 optimizer states, 2 gradients too, 3 weights too."""
    offload: Literal["none", "cpu"] = "none"
    """Keeps the optimizer's states in host memory: slower, fits larger models on a GPU."""
    gradient_checkpointing: bool = False
    """Recompute the activations of networks and decoder in their backward pass: less memory, about a third slower."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Type of weights and activations; gradients accumulate and optimizers step in fp32 either way."""
    micro_batch_size: PositiveInt | None = None
    """Pictures that a worker's networks compute at once, the rest of a step's after them: less memory for one more pass
    of the generator. null computes a worker's whole share of `training.batch_size` at once."""
    joint_reference: bool = False
    """Computes the reference with and without the prompt in one pass of twice the pictures: faster where one alone does
    not fill the GPU. With `objective.gradient: recomputed` the graph of that pass is twice as large."""
    keep_decoder_graph: bool = False
    """Keeps all of the decoder's activations until the rewards answer: two passes of the decoder in the place of four
    under recomputed gradients and checkpointing. `false` treats the decoder as the networks are treated."""
    merge_adapters: bool = False
    """Sends passes that train nothing through copies of the adapted layers into which `models.lora` is merged: fewer
    kernels, for the memory of those layers twice and in bf16 of their unrounded weights. Nothing without lora."""
    compile: Literal["none", "blocks"] = "none"
    """`blocks` compiles the repeated blocks of networks and decoder with torch.compile: faster on a GPU, a minute
    slower to start, other roundings. Not under ZeRO-3."""
    channels_last: bool = False
    """Stores convolutions with the channels last, as tensor cores read them: for UNets on a GPU; other roundings."""


class ReferenceSampling(Section):
    """How the many-step rival samples."""

    steps: PositiveInt = 50
    """Denoising steps; each costs two network evaluations under guidance."""
    guidance: NonNegative = 7.5
    """Classifier-free guidance omega (1 is none)."""


class Evaluation(Section):
    """The measurement before, during and after: same prompts, same seeds."""

    prompts: PathText
    """File of held-out prompts, in the formats of `data.prompts`."""
    column: str | None = None
    """As `data.column`."""
    num_prompts: PositiveInt = 512
    """Prompts taken from the file, from its start."""
    images_per_prompt: Annotated[int, Field(ge=2)] = 2
    """Pictures of each prompt; diversity needs at least two."""
    batch_size: PositiveInt = 64
    """Pictures drawn at once by each worker."""
    seed: int = 0
    """Seed of the evaluation's noise, apart from the training's."""
    oracle: Literal["scenes", "open_scenes"] | None = None
    """Ground truth, where the world has one; null for real pictures."""
    diversity: Literal["coarse_pixel_rms", "pixel_rms"] = "coarse_pixel_rms"
    """Distance between pictures of the same prompt; `coarse` averages 2x2 pixels first, so that noise counts less."""
    grid_prompts: PositiveInt = 8
    """Prompts of the picture grid, from the file's start."""
    reference: ReferenceSampling | None = ReferenceSampling()
    """The many-step rival in the final table; null leaves it out, and with it most of the evaluation's time."""


class Data(Section):
    """What the generator is asked to draw during training."""

    prompts: PathText
    """Text file with a prompt a line, a .jsonl, .csv, .tsv or .parquet table, a directory of tables, or a dataset of
    the hub (`hf://datasets/owner/name[@revision][/path]`); visited in a seeded order, each once before any twice."""
    column: str | None = None
    """Column or key of a table that holds the prompts; null reads the one named `prompt`, in any case of letters."""


class Registry(Section):
    """A registered model of MLflow, of which exports become versions.

    `models:/<name>@init` is where training started, `models:/<name>@best` the best by `metric`, `models:/<name>/latest`
    what came out last; versions are compared only if their runs were evaluated alike.
    """

    name: Name
    """Of the registered model; runs that share it compete for `best`."""
    metric: MetricName
    """Number of the full evaluation by which a version is the best, such as a held-out reward or `utility`."""
    mode: Literal["max", "min"] = "max"
    """Which way is better."""


class Tracking(Section):
    """Where MLflow keeps the run."""

    uri: StoreUri | None = None
    """Tracking URI; null takes MLFLOW_TRACKING_URI, else a SQLite file under `storage`."""
    experiment: Annotated[str, Field(pattern=r"\S", max_length=500)] = "slingstone"
    """MLflow experiment."""
    system_metrics: bool = True
    """Use of CPU, memory, disk, network and GPU of the first worker's node, every ten seconds, under `system/`."""
    registry: Registry | None = None
    """Registers the exported pipeline as a model, loadable by `mlflow.pyfunc`; null leaves it an artifact."""
    on_failure: Literal["spool", "stop"] = "spool"
    """What a server that is away costs once the run has begun: `spool` keeps the numbers in a file beside the
    run and delivers them when it is back; `stop` ends the run."""
