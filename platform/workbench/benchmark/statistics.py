"""From the times of alternating blocks to the platform's tax, the hidden share of a latency, and a table."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tabulate import tabulate

PLAIN, JOB, IN_PROCESS, QUICK, LATE = "plain", "job", "in_process", "one_reward", "one_reward_late"
ARMS = {
    PLAIN: "plain PyTorch loop",
    JOB: "the job: Ray Train, Serve, DeepSpeed",
    IN_PROCESS: "the job, rewards in its own process",
    QUICK: "the job with one reward",
    LATE: "the job with one late reward",
}
"""What takes turns, and what the table calls it."""

WANTED_TAX = 1.10
WANTED_HIDDEN_SHARE = 0.8
NOISY_SHARE = 0.4
"""Quartiles further apart say more about the machine than about the latency."""


@dataclass(frozen=True)
class Plan:
    """How much is measured: rounds of a block of every arm, after one that warms up; `late` names the late reward."""

    rounds: int
    steps: int
    late: str


@dataclass(frozen=True)
class Block:
    """A few consecutive steps of one arm: what one of them took.

    It computed for `covered_s` between asking for its first reward and waiting for it, then waited for `waited_s`.
    """

    seconds: float
    covered_s: float = 0.0
    waited_s: float = 0.0


@dataclass(frozen=True)
class Spread:
    """Median of the rounds, and the quartiles on either side."""

    median: float
    low: float
    high: float


Blocks = Mapping[str, Sequence[Block]]
"""The blocks of each arm, one a round; blocks of the same round were neighbours in time."""


def spread(values: Sequence[float]) -> Spread:
    """Return the median and the quartiles (inclusive, interpolated) of at least two values."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def tax(blocks: Blocks, arm: str) -> Spread:
    """Return how many times a plain step a step of `arm` takes.

    The ratio is taken within each round, so that a machine that slows down for a while slows both sides of it.
    """
    return spread([job.seconds / plain.seconds for job, plain in zip(blocks[arm], blocks[PLAIN], strict=True)])


def hidden_share(blocks: Blocks, latency_s: float) -> Spread:
    """Return `1 - (t_late - t_quick) / latency`: 1 if a step does not notice the latency, 0 if it waits for all of it.

    Taken within each round; noise may carry it past 1.
    """
    pairs = zip(blocks[LATE], blocks[QUICK], strict=True)
    return spread([1 - (late.seconds - quick.seconds) / latency_s for late, quick in pairs])


def summarise(blocks: Blocks, latency_s: float) -> dict[str, Any]:
    """Return what summary.json holds."""
    served = (JOB, QUICK, LATE)
    return {
        "seconds_per_step": {arm: asdict(spread([block.seconds for block in found])) for arm, found in blocks.items()},
        "platform_tax": asdict(tax(blocks, JOB)),
        "platform_tax_rewards_in_process": asdict(tax(blocks, IN_PROCESS)),
        "latency_s": latency_s,
        "hidden_share": asdict(hidden_share(blocks, latency_s)),
        "covered_s": {arm: statistics.median(block.covered_s for block in blocks[arm]) for arm in served},
        "waited_s": {arm: statistics.median(block.waited_s for block in blocks[arm]) for arm in served},
        "blocks": {arm: [asdict(block) for block in found] for arm, found in blocks.items()},
    }


def table(summary: Mapping[str, Any]) -> str:
    """Return the summary as a few lines: seconds a step of each arm, then the two numbers that are wanted."""
    latency_ms = 1000 * summary["latency_s"]
    rows = [
        [f"{ARMS[arm]}, {latency_ms:.0f} ms" if arm == LATE else ARMS[arm], *found.values()]
        for arm, found in summary["seconds_per_step"].items()
    ]
    cost, local, hidden = (summary[key] for key in ("platform_tax", "platform_tax_rewards_in_process", "hidden_share"))
    cheap, hides = cost["median"] <= WANTED_TAX, hidden["median"] >= WANTED_HIDDEN_SHARE
    covered, waited = (1000 * summary[name][LATE] for name in ("covered_s", "waited_s"))
    lines = [
        tabulate(rows, ["", "s/step", "quartiles", ""], "simple", floatfmt=".3f"),
        "",
        f"platform tax      {_range(cost, '.3f')}   wanted <= {WANTED_TAX:.2f}: {'reached' if cheap else 'missed'}",
        f"  in one process  {_range(local, '.3f')}   the same work on the same core: nothing runs beside the trainer",
        f"latency hidden    {_range(hidden, '.0%')}   wanted >= {WANTED_HIDDEN_SHARE:.0%}:"
        f" {'reached' if hides else 'missed'}",
        f"  {covered:.0f} ms of score networks between asking and awaiting, then a wait of {waited:.0f} ms",
    ]
    if covered < latency_ms:
        lines.append(f"  they are shorter than the latency and cannot hide {latency_ms:.0f} ms: take a larger batch")
    if hidden["high"] - hidden["low"] > NOISY_SHARE:
        lines.append("  the quartiles are far apart: measure on a quiet machine, or in more rounds")
    return "\n".join(lines)


def _range(found: Mapping[str, float], form: str) -> str:
    return f"{found['median']:{form}}  [{found['low']:{form}} .. {found['high']:{form}}]"
