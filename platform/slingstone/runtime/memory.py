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
from slingstone.runtime.engine_memory import average_bytes, engine_bytes, number_bytes
from slingstone.runtime.published import PUBLISHED, Activations, Held, Published

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


def score_phase_bytes(run: Experiment, one: Activations) -> int:
    """Return the most that graphs hold while the score networks and the decoder run, beside the generator's own graph.

    With `recomputed` gradients one graph at a time, with `direct` ones all together.
    """
    objective = run.objective
    batch = _batch(run)
    chunk = min(run.models.decode_chunk, batch)
    asked = objective.reward_weight > 0 and any(entry.weight > 0 for entry in run.rewards.services)
    decoder = one.decoder if asked else Held(0, 0)
    scores = score_graphs(run)
    if objective.gradient == "recomputed":
        beside = max(batch * one.frozen.peak if scores else 0, chunk * decoder.peak)
    else:
        working = max(one.frozen.peak - one.frozen.held if scores else 0, decoder.peak - decoder.held)
        beside = batch * (scores * one.frozen.held + decoder.held + working)
    return batch * one.trained.held + beside


def estimate(run: Experiment, known: Sizes) -> Estimate:
    """Return bytes by part on one device."""
    engine, one = engine_bytes(known.trained, run.runtime), known.activations
    frozen = number_bytes(run.runtime) * known.network
    # The generator that is evaluated and exported: what it does not share is in fp32.
    evaluated = 4 * known.trained
    trains = "adapters" if run.models.lora else "generator, assistant"
    bf16_decoder = run.models.reward_decoder_precision == "bf16" and run.models.reward_decoder is None
    resting = {
        f"weights: {trains}": 2 * engine.weights,
        **({"weights: bases of their own": frozen * own} if (own := own_bases(run)) else {}),
        "weights: reference": frozen,
        "weights: evaluated generator": evaluated,
        "weights: autoencoder": (6 if bf16_decoder else 4) * known.vae,
        "weights: text encoders": 4 * known.text if run.models.keep_text_encoder else 0,
        "optimizer states": 2 * engine.optimizer,
        "gradients and buffers": 2 * engine.kept,
        "average (EMA)": average_bytes(known.trained, run.runtime),
    }
    moments = {
        "activations of a generator step": score_phase_bytes(run, one) + engine.gathered,
        "backward pass and its gradients": _batch(run) * one.trained.peak + engine.gathered + engine.backward,
        "optimizer's step": engine.update,
    }
    return Estimate(resting, moments, 2 * engine.host + engine.host_update)


def _batch(run: Experiment) -> int:
    return run.training.batch_size // run.runtime.num_workers


def describe(run: Experiment) -> str:
    """Return what would be loaded and the estimate, as lines of a YAML comment."""
    return "\n".join(f"# {line}".rstrip() for line in _lines(run)) + "\n"


def _lines(run: Experiment) -> Iterator[str]:
    runtime, device = run.runtime, "GPU" if run.runtime.use_gpu else "worker"
    yield "loads"
    for role in ("reference", "generator", "assistant", "reward_decoder"):
        if location := getattr(run.models, role):
            yield f"  {role:<20} {location}"
    for entry in run.rewards.services:
        yield f"  {'reward ' + entry.name:<20} {entry.checkpoint}"
    try:
        known = sizes(run)
    except ValueError as error:
        yield f"memory of one {device}: not known, {error}"
        return
    found = estimate(run, known)
    mode = f"zero_stage {runtime.zero_stage}" if runtime.engine == "deepspeed" else "plain torch"
    yield f"memory of one {device} of {runtime.num_workers} ({mode}, offload {runtime.offload}, {runtime.precision})"
    adapters = f", {known.trained:,} in the adapter of each" if run.models.lora else ""
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


def sizes(run: Experiment) -> Sizes:
    """Return what is known of the run's pipeline without loading it.

    Raises:
        ValueError: if nothing is.
    """
    reference = run.models.reference
    directory = _local(reference)
    checkpointed = run.runtime.gradient_checkpointing
    if directory is not None:
        network, vae, text = _counted(directory)
        for published in PUBLISHED.values():
            if (published.network, published.vae) == (network, vae):
                return Sizes("the headers of the weights", network, vae, text, *_known(run, published))
        from slingstone.networks.adapters import Adapter
        from slingstone.networks.meta import traced

        lora = run.models.lora and Adapter(run.models.lora.rank, 1.0, run.models.lora.target_modules)
        found = traced(directory, checkpointed, run.runtime.precision, run.models.reward_decoder_precision, lora)
        graphs = Activations(*(Held(graph.held, graph.peak) for graph in (found.trained, found.frozen, found.decoder)))
        return Sizes("the headers of the weights", network, vae, text, graphs, found.weights if lora else network)
    if reference not in PUBLISHED:
        raise ValueError(f"models.reference = {reference!r} is no directory, not in the cache and in no table")
    found = PUBLISHED[reference]
    return Sizes("published sizes", found.network, found.vae, found.text, *_known(run, found))


def own_bases(run: Experiment) -> int:
    """Return how many trained networks keep frozen weights of their own, with adapters over them."""
    starts = (run.models.generator, run.models.assistant)
    return sum(bool(start) and not _shares(run, str(start)) for start in starts) if run.models.lora else 0


def _shares(run: Experiment, start: str) -> bool:
    """Return whether a network that starts there shares the reference's weights: it is the reference, or its LoRA."""
    if start == run.models.reference:
        return True
    if Path(start).is_file() and start.endswith(".safetensors"):
        return any("lora" in name for name in _header(Path(start)))
    # A file that is not here, or that cannot be looked into cheaply, is known by its name alone.
    return start.endswith((".safetensors", ".bin", ".pt", ".pth")) and "lora" in Path(start).name.lower()


def _known(run: Experiment, published: Published) -> tuple[Activations, int]:
    """Return the table's activations in the precision of the run, and how many weights are trained.

    Raises:
        ValueError: if the run's adapters are on other layers than those of the table.
    """
    found = published.checkpointed if run.runtime.gradient_checkpointing else published.plain
    lora, weights = run.models.lora, published.network
    if lora is not None:
        if lora.target_modules != ATTENTION:
            raise ValueError("models.lora.target_modules are others than those whose sizes are in the table")
        graph = published.adapted_checkpointed if run.runtime.gradient_checkpointing else published.adapted
        found, weights = replace(found, trained=graph), lora.rank * published.adapter
    factor = 1 if run.runtime.precision == "bf16" else 2
    divisor = 2 if run.models.reward_decoder_precision == "bf16" else 1
    graphs = Activations(
        Held(factor * found.trained.held, factor * found.trained.peak),
        Held(factor * found.frozen.held, factor * found.frozen.peak),
        Held(found.decoder.held // divisor, found.decoder.peak // divisor),
    )
    return graphs, weights


def score_graphs(run: Experiment) -> int:
    """Return how many score networks are differentiated in a generator step."""
    objective = run.objective
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
