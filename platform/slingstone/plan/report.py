"""The plan of a run as text: one number of GPUs in detail, all of them in a table, published runs beside it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from slingstone.config import KL, Experiment
from slingstone.plan import memory
from slingstone.plan.cost import Assumptions, Cost, cost
from slingstone.plan.work import PUBLISHED, Work, passes, step_flops, work_of

COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Anchor:
    """A published run; numbers are its authors' own.

    Attributes:
        name: of the run.
        source: where its numbers stand.
        reference: hub id of the networks.
        gpus: that it took; their kind is not stated there.
        hours: it took.
        images: it saw.
        updates: of the assistant in a step.
    """

    name: str
    source: str
    reference: str
    gpus: int
    hours: float
    images: int
    updates: int

    @property
    def images_gpu_s(self) -> float:
        """Pictures a GPU and second."""
        return self.images / (self.gpus * self.hours * 3600)

    @property
    def tflops_gpu(self) -> float:
        """What its networks alone did on one GPU, in 10^12 FLOP a second: KL, 6 passes and 4 an assistant's update."""
        return self.images_gpu_s * (6 + 4 * self.updates) * PUBLISHED[self.reference].network / 1e12


DMD2 = Anchor(
    name="DMD2, SDXL in one step",
    source="arXiv:2405.14867",
    reference="stabilityai/stable-diffusion-xl-base-1.0",
    gpus=64,
    hours=57.0,
    images=24_000 * 128,
    updates=5,
)


def describe(experiment: Experiment, gpus: int, assumed: Assumptions) -> str:
    """Return the plan.

    Raises:
        ValueError: the run's networks are not known without loading them.
    """
    work, known, side = work_of(experiment), memory.sizes(experiment), picture_side(experiment)
    counts = sorted({*COUNTS, gpus})
    costs = [cost(experiment, count, work, known, assumed, side) for count in counts]
    chosen = costs[counts.index(gpus)]
    return "\n".join(
        [
            *_assumed(experiment, work, known, assumed),
            "",
            *_detail(experiment, chosen, assumed),
            "",
            *_table(experiment, costs, assumed),
            "",
            *_anchor(experiment, assumed),
        ]
    )


def picture_side(experiment: Experiment) -> int:
    """Return the height and width of the published families' pictures; of others, by the decoder's work."""
    if experiment.models.reference in PUBLISHED:
        return 1024 if "xl-base" in experiment.models.reference else 512
    from slingstone.networks.footprint import picture_side as counted

    return counted(Path(experiment.models.reference))


def _assumed(experiment: Experiment, work: Work, known: memory.Sizes, assumed: Assumptions) -> Iterator[str]:
    device, counted = assumed.device, passes(experiment)
    yield f"{experiment.name}: {known.network:,} weights a network, from {known.source}"
    yield (
        f"  forward pass of a picture      network {work.network / 1e12:.4g} TFLOP, decoder {work.decoder / 1e12:.4g}"
    )
    yield (
        f"  passes of a step               assistant {counted.assistant}, generator {counted.generator},"
        f" divergence {counted.divergence}, decoder {counted.decoder}:"
        f" {step_flops(experiment, work) / 1e12:.4g} TFLOP a picture"
    )
    yield (
        f"  assumed, not measured          {device.name}, {assumed.utilisation:.0%} of {device.tflops:g} TFLOP/s;"
        f" {assumed.link_use:.0%} of {device.near_gb_s:g} GB/s in a node of {device.per_node}, of"
        f" {device.far_gb_s:g} GB/s out of it; no collective hides behind compute"
    )


def _detail(experiment: Experiment, found: Cost, assumed: Assumptions) -> Iterator[str]:
    over = f"  MORE THAN THE {assumed.device.memory_gib:g} GIB OF A GPU" if _too_large(found, assumed) else ""
    yield f"on {found.gpus} GPUs, {found.batch} pictures a step ({found.batch // found.gpus} a GPU)"
    yield f"  compute                        {found.compute_s:9.3f} s"
    yield f"  ZeRO traffic, stage {experiment.runtime.zero_stage}          {found.traffic_s:9.3f} s"
    yield f"  step                           {found.step_s:9.3f} s, {found.images_s:.1f} pictures a second"
    if found.replicas:
        needed = ", ".join(f"{name} {count}" for name, count in found.replicas.items())
        yield (
            f"  rewards have                   {found.window_s:9.3f} s; replicas that stay within it: {needed}"
            f" ({found.reward_gpus:g} GPUs)"
        )
        yield f"  the configured replicas add    {found.exposed_s:9.3f} s"
        yield f"  pictures to rewards and back   {found.picture_gib:9.3f} GiB a step"
    yield f"  memory of one GPU              {found.memory_gib:9.3f} GiB{over}"
    yield f"  checkpoint                     {found.checkpoint_gib:9.3f} GiB"
    yield f"  the whole run                  {_hours(experiment, found):9.1f} h, evaluations not counted"


def _table(experiment: Experiment, costs: Sequence[Cost], assumed: Assumptions) -> Iterator[str]:
    yield " GPUs  batch  GiB/GPU  compute s  traffic s  step s  pictures/s  reward GPUs  hours"
    for found in costs:
        mark = " !" if _too_large(found, assumed) else ""
        hours = _hours(experiment, found)
        yield (
            f"{found.gpus:5d} {found.batch:6d} {found.memory_gib:8.1f} {found.compute_s:10.3f} {found.traffic_s:10.3f}"
            f" {found.step_s:7.3f} {found.images_s:11.1f} {found.reward_gpus:12.1f} {hours:6.1f}{mark}"
        )
    yield f"! does not fit {assumed.device.memory_gib:g} GiB"
    yield "Where a GPU has one picture and the batch still grows, it is another experiment."


def _anchor(experiment: Experiment, assumed: Assumptions) -> Iterator[str]:
    yield f"published, authors' own numbers: {DMD2.name} ({DMD2.source})"
    yield (
        f"  {DMD2.gpus} GPUs x {DMD2.hours:g} h, {DMD2.images:,} pictures: {DMD2.images_gpu_s:.2f} a GPU and second,"
        f" {DMD2.tflops_gpu:.0f} TFLOP/s a GPU"
    )
    yield f"  this plan assumes {assumed.device.tflops * assumed.utilisation:.0f} TFLOP/s a GPU for every network"
    if experiment.models.reference == DMD2.reference and not isinstance(experiment.objective.distance, KL):
        factor = passes(experiment).network / (6 + 4 * DMD2.updates)
        yield f"  this run's step takes {factor:.2f} times the network passes of theirs, and a decoder's"


def _hours(experiment: Experiment, found: Cost) -> float:
    return experiment.training.num_images / found.images_s / 3600


def _too_large(found: Cost, assumed: Assumptions) -> bool:
    return found.memory_gib > assumed.device.memory_gib
