"""Peak memory of one generator update, with and without what saves it, on a random SDXL-like network.

Bytes are those of tensors: every operation's results, from when they are made until they are freed
(`networks.footprint.LiveBytes`). What kernels use inside, and what an allocator keeps, is not seen.
"""

from tabulate import tabulate

from slingstone.networks.footprint import LiveBytes
from workbench.benchmark.architecture import VARIANTS, Architecture, Variant, random_family, trainer_of

PARTS = ("resting", "peak")
"""Of a measurement: bytes between steps, and the most beyond them."""


def measure(architecture: Architecture, batch: int) -> dict[str, dict[str, int]]:
    """Return, by variant, the bytes that rest between steps and the most of a generator's update beyond them."""
    return {name: _peak(architecture, batch, variant) for name, variant in VARIANTS.items()}


def table(found: dict[str, dict[str, int]]) -> str:
    """Return the measurement as lines, with each number as a ratio of the first line's."""
    first = next(iter(found.values()))
    rows = [
        [
            name,
            *(f"{x}" for part in PARTS for x in (f"{value[part] / 2**20:.1f}", f"{value[part] / first[part]:.3f}")),
            f"{sum(value.values()) / sum(first.values()):.3f}",
        ]
        for name, value in found.items()
    ]
    headings = ["", "resting MiB", "ratio", "peak MiB", "ratio", "together"]
    return tabulate(rows, headings, "plain", disable_numparse=True, colalign=["left", *["right"] * 5])


def _peak(architecture: Architecture, batch: int, variant: Variant) -> dict[str, int]:
    with LiveBytes("cpu") as live:
        trainer = trainer_of(random_family(architecture, variant), variant.gradient, batch)
        # The first step makes what stays: the optimizers' moments.
        trainer.step()
        resting, live.peak = live.now, live.now
        trainer._update_generator()
    return {"resting": resting, "peak": live.peak - resting}
