"""Memory of one device, by part, before anything is loaded. Imports no torch where the networks are known.

Sizes come from the headers of local weights, or for published checkpoints from a table; activations of networks that
are not in the table are counted on torch's meta device.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

from safetensors import safe_open

from slingstone.config import ATTENTION, EMBEDDINGS_LIMIT, Experiment
from slingstone.plan.engine_memory import average_bytes, engine_bytes, number_bytes
from slingstone.plan.published_sizes import PUBLISHED, Activations, GraphBytes, Prompt, Published
from slingstone.plan.work import score_graphs, trained_on
from slingstone.prompts.files import read_prompts


@dataclass(frozen=True)
class Sizes:
    """Weights of the denoising network, of the autoencoder and of all text encoders, and one picture's activations.

    Attributes:
        source: where the numbers come from, for the user.
        activations: of the network in the run's precision and of the reward's decoder.
        trained: weights that each engine trains: the network's, or its adapter's.
        projections: weights of the layers that have an adapter.
        prompt: what a prompt takes.
        prompts: of training, that are known; 0 where the file is not here yet.
    """

    source: str
    network: int
    vae: int
    text: int
    activations: Activations
    trained: int
    projections: int
    prompt: Prompt
    prompts: int

    def embeddings(self, experiment: Experiment) -> int:
        """Return the bytes of all training prompts' embeddings."""
        return number_bytes(experiment.runtime) * self.prompt.numbers * self.prompts

    def ahead(self, experiment: Experiment) -> bool:
        """Return whether prompts are encoded before the first step; the text encoders then leave the device."""
        return not experiment.models.keep_text_encoder and self.embeddings(experiment) <= EMBEDDINGS_LIMIT


@dataclass(frozen=True)
class Estimate:
    """Bytes on one device, by part.

    Attributes:
        resting: there all the time.
        moments: beyond them, the most of each phase of a step; phases follow each other. Where gradients arrive while
            the graph is freed, both count in full: an upper bound.
        host: in host memory, for offloaded optimizers and the average beside them.
    """

    resting: dict[str, int]
    moments: dict[str, int]
    host: int

    @property
    def between_steps(self) -> int:
        """All that rests."""
        return sum(self.resting.values())

    @property
    def most(self) -> int:
        """The most at a time."""
        return self.between_steps + max(self.moments.values())


def estimate(experiment: Experiment, known: Sizes) -> Estimate:
    """Return bytes by part on one device."""
    models, at_once = experiment.models, experiment.pictures_at_once
    engine, one = engine_bytes(known.trained, experiment.runtime), known.activations
    frozen = number_bytes(experiment.runtime) * known.network
    trains = "adapters" if models.lora else "generator, assistant"
    bf16_decoder = models.reward_decoder_precision == "bf16" and models.reward_decoder is None
    # Over a rounded base it has an unrounded one of its own.
    alone = known.network if models.lora and experiment.runtime.precision == "bf16" else 0
    average, offloaded = average_bytes(known.trained, experiment.runtime), experiment.runtime.offload == "cpu"
    resting = {
        f"weights: {trains}": 2 * engine.weights,
        **({"weights: bases of their own": frozen * own} if (own := own_bases(experiment)) else {}),
        **({"weights: merged layers": merged} if (merged := merged_bytes(experiment, known)) else {}),
        "weights: reference": frozen,
        "weights: evaluated generator": 4 * (known.trained + alone),  # what it does not share is in fp32
        "weights: autoencoder": (6 if bf16_decoder else 4) * known.vae,
        "weights: text encoders": 0 if known.ahead(experiment) else 4 * known.text,
        "optimizer states": 2 * engine.optimizer,
        "gradients and buffers": 2 * engine.kept,
        "average (EMA)": 0 if offloaded else average,
    }
    moments = {
        "activations of a generator step": score_phase_bytes(experiment, one) + engine.gathered,
        "backward pass and its gradients": at_once * one.trained.peak + engine.gathered + engine.backward,
        "optimizer's step": engine.update,
    }
    host = 2 * engine.host + engine.host_update + (average if offloaded else 0)
    return Estimate(resting, moments, host)


def score_phase_bytes(experiment: Experiment, one: Activations) -> int:
    """Return the most that graphs hold while the score networks and the decoder run, beside the generator's own graph.

    With `recomputed` gradients one graph at a time, with `direct` ones all together.
    """
    runtime, direct = experiment.runtime, experiment.objective.gradient == "direct"
    pictures, at_once, scores = experiment.pictures, experiment.pictures_at_once, score_graphs(experiment)
    decoder = one.decoder if trained_on(experiment) else GraphBytes(0, 0)
    # What is drawn again for the backward pass holds no graph yet.
    own = pictures * one.trained.held if at_once == pictures else 0
    working = one.frozen.peak - one.frozen.held if scores else 0
    if direct:
        scoring = at_once * (scores * one.frozen.held + working)
    else:
        scoring = at_once * one.frozen.peak * bool(scores) * (2 if runtime.joint_reference and scores == 3 else 1)
    chunk = min(experiment.models.decode_chunk, pictures)
    if direct or runtime.keep_decoder_graph:
        return own + pictures * decoder.held + max(scoring, chunk * (decoder.peak - decoder.held))
    return own + max(scoring, chunk * decoder.peak)


def sizes(experiment: Experiment) -> Sizes:
    """Return what is known of the run's pipeline without loading it.

    Raises:
        ValueError: if nothing is.
    """
    models, runtime, reference = experiment.models, experiment.runtime, experiment.models.reference
    directory, prompts = local_pipeline(reference), _prompts(experiment)
    if directory is None:
        if reference not in PUBLISHED:
            raise ValueError(f"models.reference = {reference!r} is no directory, not in the cache and in no table")
        found = PUBLISHED[reference]
        counted = (found.network, found.vae, found.text)
        return Sizes("published sizes", *counted, *_published(experiment, found), found.prompt, prompts)
    source, (network, vae, text) = "the headers of the weights", _counted(directory)
    for published in PUBLISHED.values():
        if (published.network, published.vae) == (network, vae):
            of_table = (*_published(experiment, published), published.prompt)
            return Sizes(source, network, vae, text, *of_table, prompts)
    from slingstone.networks.adapters import Adapter
    from slingstone.networks.footprint import prompt_size, traced

    lora = models.lora and Adapter(models.lora.rank, 1.0, models.lora.target_modules)
    checkpointed = runtime.gradient_checkpointing
    precisions = runtime.precision, models.reward_decoder_precision
    found = traced(directory, checkpointed, checkpointed and not runtime.keep_decoder_graph, *precisions, lora)
    graphs = (GraphBytes(graph.held, graph.peak) for graph in (found.trained, found.frozen, found.decoder))
    trained, prompt = found.weights if lora else network, Prompt(*prompt_size(directory))
    return Sizes(source, network, vae, text, Activations(*graphs), trained, found.projections, prompt, prompts)


def _prompts(experiment: Experiment) -> int:
    try:
        return len(set(read_prompts(experiment.data.prompts, experiment.data.column)))
    except ValueError:
        return 0


def _published(experiment: Experiment, published: Published) -> tuple[Activations, int, int]:
    """Return the table's activations in the precision of the run, how many weights are trained, and those adapted.

    Raises:
        ValueError: if the run's adapters are on other layers than those of the table.
    """
    checkpointed, lora = experiment.runtime.gradient_checkpointing, experiment.models.lora
    found, weights = published.checkpointed if checkpointed else published.plain, published.network
    if experiment.runtime.keep_decoder_graph:
        found = found._replace(decoder=published.plain.decoder)
    if lora is not None:
        if lora.target_modules != ATTENTION:
            raise ValueError("models.lora.target_modules are others than those whose sizes are in the table")
        found = found._replace(trained=published.adapted_checkpointed if checkpointed else published.adapted)
        weights = lora.rank * published.adapter
    factor = 1 if experiment.runtime.precision == "bf16" else 2
    divisor = 2 if experiment.models.reward_decoder_precision == "bf16" else 1
    graphs = Activations(
        trained=GraphBytes(factor * found.trained.held, factor * found.trained.peak),
        frozen=GraphBytes(factor * found.frozen.held, factor * found.frozen.peak),
        decoder=GraphBytes(found.decoder.held // divisor, found.decoder.peak // divisor),
    )
    return graphs, weights, published.projections if lora else 0


def merged_bytes(experiment: Experiment, known: Sizes) -> int:
    """Return what merged copies of the adapted layers hold, and in bf16 the unrounded weights under them."""
    runtime = experiment.runtime
    if experiment.models.lora is None or not runtime.merge_adapters:
        return 0
    bases = min(2, own_bases(experiment) + 1) if runtime.precision == "bf16" else 0
    return known.projections * (2 * number_bytes(runtime) + 4 * bases)


def own_bases(experiment: Experiment) -> int:
    """Return how many trained networks keep frozen weights of their own, with adapters over them."""
    starts = (experiment.models.generator, experiment.models.assistant)
    return sum(bool(start) and not _shares(experiment, str(start)) for start in starts) if experiment.models.lora else 0


def _shares(experiment: Experiment, start: str) -> bool:
    """Return whether a network that starts there shares the reference's weights: it is the reference, or its LoRA."""
    if start == experiment.models.reference:
        return True
    if Path(start).is_file() and start.endswith(".safetensors"):
        with safe_open(start, "numpy") as file:
            return any("lora" in name for name in file.keys())  # noqa: SIM118  (no mapping)
    # A file that is not here, or that cannot be looked into cheaply, is known by its name alone.
    return start.endswith((".safetensors", ".bin", ".pt", ".pth")) and "lora" in Path(start).name.lower()


def local_pipeline(reference: str) -> Path | None:
    """Return the directory of a pipeline that is here, or lies in the hub's cache."""
    if Path(reference).is_dir():
        return Path(reference)
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(reference, "model_index.json") if reference.count("/") == 1 else None
    return Path(cached).parent if isinstance(cached, str) else None


def _counted(directory: Path) -> tuple[int, int, int]:
    """Return the weights of network, autoencoder and all text encoders."""
    parts = {path.parent for path in directory.glob("*/*.safetensors")}
    weights = {part.name: sum(_weights(file) for file in _files(part)) for part in parts}
    network = weights.get("unet", 0) or weights.get("transformer", 0)
    if not network:
        raise ValueError(f"models.reference = {str(directory)!r} has no network in safetensors")
    text = sum(count for part, count in weights.items() if part.startswith("text_encoder"))
    return network, weights.get("vae", 0), text


def _files(part: Path) -> Iterator[Path]:
    """Return the files of a part's weights in full precision: sharded by an index, or one; variants are left out."""
    for index in part.glob("*.safetensors.index.json"):
        if index.name.count(".") == 3:
            yield from (part / name for name in set(json.loads(index.read_text())["weight_map"].values()))
            return
    yield from (file for file in part.glob("*.safetensors") if file.name.count(".") == 1)


def _weights(path: Path) -> int:
    """Return how many numbers a file of weights holds, from its header."""
    with safe_open(path, "numpy") as file:
        return sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118  (no mapping)
