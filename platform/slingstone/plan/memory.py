"""Memory of one device, by part, before anything is loaded. Imports no torch where the networks are known.

Sizes come from the headers of local weights, or for published checkpoints from a table; activations of networks that
are not in the table are counted on torch's meta device.
"""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from slingstone.config import ATTENTION, KL, Experiment
from slingstone.plan.engine_memory import average_bytes, engine_bytes, number_bytes
from slingstone.plan.published_sizes import PUBLISHED, Activations, GraphBytes, Published

GIB = 2**30


@dataclass(frozen=True)
class Sizes:
    """Weights of a pipeline's parts, and what is known about one picture's activations.

    Attributes:
        source: where the numbers come from, for the user.
        network: weights of the denoising network.
        vae: of the autoencoder.
        text: of all text encoders.
        activations: of the network in the run's precision and of the reward's decoder.
        trained: weights that each engine trains: the network's, or its adapter's.
    """

    source: str
    network: int
    vae: int
    text: int
    activations: Activations
    trained: int


@dataclass(frozen=True)
class Estimate:
    """Bytes on one device, by part.

    Attributes:
        resting: there all the time.
        moments: beyond them, the most of each phase of a step; phases follow each other. Where gradients arrive while
            the graph is freed, both count in full: an upper bound.
        host: in host memory, for offloaded optimizers.
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


def score_phase_bytes(experiment: Experiment, one: Activations) -> int:
    """Return the most that graphs hold while the score networks and the decoder run, beside the generator's own graph.

    With `recomputed` gradients one graph at a time, with `direct` ones all together.
    """
    objective = experiment.objective
    batch = _batch(experiment)
    chunk = min(experiment.models.decode_chunk, batch)
    asked = objective.reward_weight > 0 and any(entry.weight > 0 for entry in experiment.rewards.services)
    decoder = one.decoder if asked else GraphBytes(0, 0)
    scores = score_graphs(experiment)
    if objective.gradient == "recomputed":
        beside = max(batch * one.frozen.peak if scores else 0, chunk * decoder.peak)
    else:
        working = max(one.frozen.peak - one.frozen.held if scores else 0, decoder.peak - decoder.held)
        beside = batch * (scores * one.frozen.held + decoder.held + working)
    return batch * one.trained.held + beside


def estimate(experiment: Experiment, known: Sizes) -> Estimate:
    """Return bytes by part on one device."""
    engine, one = engine_bytes(known.trained, experiment.runtime), known.activations
    frozen = number_bytes(experiment.runtime) * known.network
    # The generator that is evaluated and exported: what it does not share is in fp32.
    evaluated = 4 * known.trained
    trains = "adapters" if experiment.models.lora else "generator, assistant"
    bf16_decoder = experiment.models.reward_decoder_precision == "bf16" and experiment.models.reward_decoder is None
    resting = {
        f"weights: {trains}": 2 * engine.weights,
        **({"weights: bases of their own": frozen * own} if (own := own_bases(experiment)) else {}),
        "weights: reference": frozen,
        "weights: evaluated generator": evaluated,
        "weights: autoencoder": (6 if bf16_decoder else 4) * known.vae,
        "weights: text encoders": 4 * known.text if experiment.models.keep_text_encoder else 0,
        "optimizer states": 2 * engine.optimizer,
        "gradients and buffers": 2 * engine.kept,
        "average (EMA)": average_bytes(known.trained, experiment.runtime),
    }
    moments = {
        "activations of a generator step": score_phase_bytes(experiment, one) + engine.gathered,
        "backward pass and its gradients": _batch(experiment) * one.trained.peak + engine.gathered + engine.backward,
        "optimizer's step": engine.update,
    }
    return Estimate(resting, moments, 2 * engine.host + engine.host_update)


def _batch(experiment: Experiment) -> int:
    return experiment.training.batch_size // experiment.runtime.num_workers


def describe(experiment: Experiment) -> str:
    """Return what would be loaded and the estimate, as lines of a YAML comment."""
    return "\n".join(f"# {line}".rstrip() for line in _lines(experiment)) + "\n"


def _lines(experiment: Experiment) -> Iterator[str]:
    runtime, device = experiment.runtime, "GPU" if experiment.runtime.use_gpu else "worker"
    yield "loads"
    for role in ("reference", "generator", "assistant", "reward_decoder"):
        if location := getattr(experiment.models, role):
            yield f"  {role:<20} {location}"
    for entry in experiment.rewards.services:
        yield f"  {'reward ' + entry.name:<20} {entry.checkpoint}"
    try:
        known = sizes(experiment)
    except ValueError as error:
        yield f"memory of one {device}: not known, {error}"
        return
    found = estimate(experiment, known)
    mode = f"zero_stage {runtime.zero_stage}" if runtime.engine == "deepspeed" else "plain torch"
    yield f"memory of one {device} of {runtime.num_workers} ({mode}, offload {runtime.offload}, {runtime.precision})"
    adapters = f", {known.trained:,} in the adapter of each" if experiment.models.lora else ""
    yield f"  from {known.source}; {known.network:,} weights a network{adapters}"
    yield from (_line(name, size, found.most) for name, size in found.resting.items())
    yield _line("between steps", found.between_steps, found.most)
    yield "  the most beyond it, one after the other"
    yield from (_line(name, size, found.most) for name, size in found.moments.items())
    yield _line("at its most", found.most, found.most)
    if found.host:
        yield _line("in host memory", found.host, found.most)
    yield "  beside it: the workspaces of kernels, fragmentation, and rewards on the same device"


def _line(name: str, size: int, most: int) -> str:
    unit, label = (GIB, "GiB") if most >= GIB else (2**20, "MiB")
    return f"  {name:<36}{size / unit:9.3f} {label}"


def sizes(experiment: Experiment) -> Sizes:
    """Return what is known of the run's pipeline without loading it.

    Raises:
        ValueError: if nothing is.
    """
    reference = experiment.models.reference
    directory = _local(reference)
    checkpointed = experiment.runtime.gradient_checkpointing
    if directory is not None:
        network, vae, text = _counted(directory)
        for published in PUBLISHED.values():
            if (published.network, published.vae) == (network, vae):
                return Sizes("the headers of the weights", network, vae, text, *_known(experiment, published))
        from slingstone.networks.adapters import Adapter
        from slingstone.networks.footprint import traced

        lora = experiment.models.lora and Adapter(
            experiment.models.lora.rank, 1.0, experiment.models.lora.target_modules
        )
        found = traced(
            directory, checkpointed, experiment.runtime.precision, experiment.models.reward_decoder_precision, lora
        )
        graphs = Activations(
            *(GraphBytes(graph.held, graph.peak) for graph in (found.trained, found.frozen, found.decoder))
        )
        return Sizes("the headers of the weights", network, vae, text, graphs, found.weights if lora else network)
    if reference not in PUBLISHED:
        raise ValueError(f"models.reference = {reference!r} is no directory, not in the cache and in no table")
    found = PUBLISHED[reference]
    return Sizes("published sizes", found.network, found.vae, found.text, *_known(experiment, found))


def own_bases(experiment: Experiment) -> int:
    """Return how many trained networks keep frozen weights of their own, with adapters over them."""
    starts = (experiment.models.generator, experiment.models.assistant)
    return sum(bool(start) and not _shares(experiment, str(start)) for start in starts) if experiment.models.lora else 0


def _shares(experiment: Experiment, start: str) -> bool:
    """Return whether a network that starts there shares the reference's weights: it is the reference, or its LoRA."""
    if start == experiment.models.reference:
        return True
    if Path(start).is_file() and start.endswith(".safetensors"):
        return any("lora" in name for name in _header(Path(start)))
    # A file that is not here, or that cannot be looked into cheaply, is known by its name alone.
    return start.endswith((".safetensors", ".bin", ".pt", ".pth")) and "lora" in Path(start).name.lower()


def _known(experiment: Experiment, published: Published) -> tuple[Activations, int]:
    """Return the table's activations in the precision of the run, and how many weights are trained.

    Raises:
        ValueError: if the run's adapters are on other layers than those of the table.
    """
    found = published.checkpointed if experiment.runtime.gradient_checkpointing else published.plain
    lora, weights = experiment.models.lora, published.network
    if lora is not None:
        if lora.target_modules != ATTENTION:
            raise ValueError("models.lora.target_modules are others than those whose sizes are in the table")
        graph = published.adapted_checkpointed if experiment.runtime.gradient_checkpointing else published.adapted
        found, weights = replace(found, trained=graph), lora.rank * published.adapter
    factor = 1 if experiment.runtime.precision == "bf16" else 2
    divisor = 2 if experiment.models.reward_decoder_precision == "bf16" else 1
    graphs = Activations(
        GraphBytes(factor * found.trained.held, factor * found.trained.peak),
        GraphBytes(factor * found.frozen.held, factor * found.frozen.peak),
        GraphBytes(found.decoder.held // divisor, found.decoder.peak // divisor),
    )
    return graphs, weights


def score_graphs(experiment: Experiment) -> int:
    """Return how many score networks are differentiated in a generator step."""
    objective = experiment.objective
    if isinstance(objective.distance, KL) or objective.flow == "detach_networks":
        return 0
    if objective.flow == "detach_distance":
        return 1
    return 3 if objective.guidance.kind == "inner" and objective.guidance.scale else 2


def _local(reference: str) -> Path | None:
    """Return the directory of a pipeline that is here, or lies in the hub's cache."""
    if Path(reference).is_dir():
        return Path(reference)
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(reference, "model_index.json") if reference.count("/") == 1 else None
    return Path(cached).parent if isinstance(cached, str) else None


def _counted(directory: Path) -> tuple[int, int, int]:
    """Return the weights of network, autoencoder and all text encoders."""
    parts = {path.parent.name: 0 for path in directory.glob("*/*.safetensors")}
    for part in parts:
        parts[part] = sum(_weights(file) for file in _files(directory / part))
    network = parts.get("unet", 0) or parts.get("transformer", 0)
    if not network:
        raise ValueError(f"models.reference = {str(directory)!r} has no network in safetensors")
    text = sum(count for part, count in parts.items() if part.startswith("text_encoder"))
    return network, parts.get("vae", 0), text


def _files(part: Path) -> Iterator[Path]:
    """Return the files of a part's weights in full precision: sharded by an index, or one; variants are left out."""
    for index in part.glob("*.safetensors.index.json"):
        if index.name.count(".") == 3:
            yield from (part / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values())))
            return
    yield from (file for file in part.glob("*.safetensors") if file.name.count(".") == 1)


def _weights(file: Path) -> int:
    """Return how many numbers a file of weights holds, from its header."""
    return sum(prod(entry["shape"]) for name, entry in _header(file).items() if name != "__metadata__")


def _header(file: Path) -> dict[str, Any]:
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        return json.loads(opened.read(length))
