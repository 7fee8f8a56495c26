"""What is known before a run starts, as text: the memory of a dry run, and the cost on 1 to 1,024 GPUs."""

from collections.abc import Iterator, Sequence
from textwrap import indent

from tabulate import tabulate

from slingstone.config import EMBEDDINGS_LIMIT, KL, Experiment
from slingstone.plan.cost import GIB, Assumptions, Cost, cost
from slingstone.plan.memory import Sizes, estimate, sizes
from slingstone.plan.published_sizes import PUBLISHED, Work
from slingstone.plan.work import passes, step_flops, work_of

ASSUMED_TFLOPS = 100.0
"""Of one GPU at the text encoders: a tenth of an H100's peak."""
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


def dry_run(experiment: Experiment) -> str:
    """Return what would be loaded and the memory of one device, as lines of a YAML comment."""
    return indent("\n".join([*_loads(experiment), *_memory(experiment)]), "# ") + "\n"


def _loads(experiment: Experiment) -> Iterator[str]:
    yield "loads"
    for role in ("reference", "generator", "assistant", "reward_decoder"):
        if location := getattr(experiment.models, role):
            yield f"  {role:<20} {location}"
    for entry in experiment.rewards.services:
        yield f"  {'reward ' + entry.name:<20} {entry.checkpoint}"


def _memory(experiment: Experiment) -> Iterator[str]:
    runtime, device = experiment.runtime, "GPU" if experiment.runtime.use_gpu else "worker"
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
    unit, label = (GIB, "GiB") if found.most >= GIB else (2**20, "MiB")

    def line(name: str, size: int) -> str:
        return f"  {name:<36}{size / unit:9.3f} {label}"

    yield from (line(name, size) for name, size in found.resting.items())
    yield line("between steps", found.between_steps)
    yield "  the most beyond it, one after the other"
    yield from (line(name, size) for name, size in found.moments.items())
    yield line("at its most", found.most)
    if found.host:
        yield line("in host memory", found.host)
    yield "  beside it: the workspaces of kernels, fragmentation, and rewards on the same device"
    yield from _prompts(experiment, known)


def _prompts(experiment: Experiment, known: Sizes) -> Iterator[str]:
    """Yield where the training prompts are encoded, and what that takes."""
    if not known.prompts:
        yield "prompts: not known, their file is not here yet"
        return
    size = known.embeddings(experiment)
    how = f"{known.prompts:,} prompts: embeddings of {size / GIB:.3g} GiB"
    if known.ahead(experiment):
        flops = 2 * known.text * known.prompt.tokens * known.prompts / experiment.runtime.num_workers
        minutes = flops / (ASSUMED_TFLOPS * 1e12) / 60
        yield f"{how} under {experiment.storage}/embeddings, before the first step"
        yield f"  in {minutes:.2g} min a GPU that reaches {ASSUMED_TFLOPS:g} TFLOP/s"
    else:
        why = "" if experiment.models.keep_text_encoder else f", more than {EMBEDDINGS_LIMIT / GIB:g} GiB"
        yield f"{how}{why}: encoded as training goes"


def scaling(experiment: Experiment, gpus: int, assumed: Assumptions) -> str:
    """Return one number of GPUs in detail, all of them in a table, and a published run beside them.

    Raises:
        ValueError: the run's networks are not known without loading them.
    """
    work, known = work_of(experiment), sizes(experiment)
    costs = {count: cost(experiment, count, work, known, assumed) for count in sorted({*COUNTS, gpus})}
    parts = (
        _assumed(experiment, work, known, assumed),
        _detail(experiment, costs[gpus], assumed),
        _table(experiment, list(costs.values()), assumed),
        _published(experiment, assumed),
    )
    return "\n\n".join("\n".join(part) for part in parts)


def _assumed(experiment: Experiment, work: Work, known: Sizes, assumed: Assumptions) -> Iterator[str]:
    device, counted = assumed.device, passes(experiment)
    yield f"{experiment.name}: {known.network:,} weights a network, from {known.source}"
    yield f"  forward pass of a picture   network {work.network / 1e12:.4g} TFLOP, decoder {work.decoder / 1e12:.4g}"
    yield (
        f"  passes of a step            assistant {counted.assistant}, generator {counted.generator},"
        f" divergence {counted.divergence}, decoder {counted.decoder}:"
        f" {step_flops(experiment, work) / 1e12:.4g} TFLOP a picture"
    )
    yield (
        f"  assumed, not measured       {device.name}, {assumed.utilisation:.0%} of {device.tflops:g} TFLOP/s;"
        f" {assumed.link_use:.0%} of {device.near_gb_s:g} GB/s in a node of {device.per_node}, of"
        f" {device.far_gb_s:g} GB/s out of it; no collective hides behind compute"
    )


def _detail(experiment: Experiment, found: Cost, assumed: Assumptions) -> Iterator[str]:
    over = f"  MORE THAN THE {assumed.device.memory_gib:g} GIB OF A GPU" if _too_large(found, assumed) else ""
    rows = [
        ("compute", found.compute_s, "s"),
        (f"ZeRO traffic, stage {experiment.runtime.zero_stage}", found.traffic_s, "s"),
        ("step", found.step_s, f"s, {found.images_s:.1f} pictures a second"),
    ]
    if found.replicas:
        needed = ", ".join(f"{name} {count}" for name, count in found.replicas.items())
        within = f"s; replicas that stay within it: {needed} ({found.reward_gpus:g} GPUs)"
        rows += [
            ("rewards have", found.window_s, within),
            ("the configured replicas add", found.exposed_s, "s"),
            ("pictures to rewards and back", found.picture_gib, "GiB a step"),
        ]
    rows += [
        ("memory of one GPU", found.memory_gib, f"GiB{over}"),
        ("checkpoint", found.checkpoint_gib, "GiB"),
        ("the whole run", _hours(experiment, found), "h, evaluations not counted"),
    ]
    yield f"on {found.gpus} GPUs, {found.batch} pictures a step ({found.batch // found.gpus} a GPU)"
    yield indent(tabulate(rows, tablefmt="plain", floatfmt=".3f"), "  ")


def _table(experiment: Experiment, costs: Sequence[Cost], assumed: Assumptions) -> Iterator[str]:
    rows = [
        {
            "GPUs": found.gpus,
            "batch": found.batch,
            "GiB/GPU": found.memory_gib,
            "compute s": found.compute_s,
            "traffic s": found.traffic_s,
            "step s": found.step_s,
            "pictures/s": found.images_s,
            "reward GPUs": found.reward_gpus,
            "hours": _hours(experiment, found),
            "": "!" if _too_large(found, assumed) else "",
        }
        for found in costs
    ]
    digits = ("", "", ".1f", ".3f", ".3f", ".3f", ".1f", ".1f", ".1f", "")
    yield tabulate(rows, headers="keys", tablefmt="plain", floatfmt=digits)
    yield f"! does not fit {assumed.device.memory_gib:g} GiB"
    yield "Where a GPU has one picture and the batch still grows, it is another experiment."


def _published(experiment: Experiment, assumed: Assumptions) -> Iterator[str]:
    """Yield the numbers of DMD2 in one step of SDXL, with KL; its authors do not state the kind of their GPUs."""
    reference = "stabilityai/stable-diffusion-xl-base-1.0"
    gpus, hours, images = 64, 57, 24_000 * 128
    images_gpu_s = images / (gpus * hours * 3600)
    passes_of_a_step = 6 + 4 * 5  # of the network alone: KL's, and those of five updates of the assistant
    tflops_gpu = images_gpu_s * passes_of_a_step * PUBLISHED[reference].work.network / 1e12
    yield "published, authors' own numbers: DMD2, SDXL in one step (arXiv:2405.14867)"
    yield (
        f"  {gpus} GPUs x {hours} h, {images:,} pictures: {images_gpu_s:.2f} a GPU and second,"
        f" {tflops_gpu:.0f} TFLOP/s a GPU"
    )
    yield f"  this plan assumes {assumed.device.tflops * assumed.utilisation:.0f} TFLOP/s a GPU for every network"
    if experiment.models.reference == reference and not isinstance(experiment.objective.distance, KL):
        factor = passes(experiment).network / passes_of_a_step
        yield f"  this run's step takes {factor:.2f} times the network passes of theirs, and a decoder's"


def _hours(experiment: Experiment, found: Cost) -> float:
    return experiment.training.num_images / found.images_s / 3600


def _too_large(found: Cost, assumed: Assumptions) -> bool:
    return found.memory_gib > assumed.device.memory_gib
