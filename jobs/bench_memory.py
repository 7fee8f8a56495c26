"""Measure what saves memory, on a CPU: jobs/bench_memory.py [--side 32] ...; needs the workbench, so a clone."""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]  # this source, whatever is installed


def main() -> int:
    """Take a generator step of a random SDXL-like network in each way, and print the peaks beside each other."""
    parser = argparse.ArgumentParser(description="Peak bytes of tensors in one generator step, as ratios in one run.")
    parser.add_argument("--side", type=int, default=32, help="side of the latents; divisible by 4")
    parser.add_argument("--width", type=int, default=64, help="channels of the first level; divisible by 32")
    parser.add_argument("--depth", type=int, default=2, help="transformer blocks of the deepest level; SDXL has 10")
    parser.add_argument("--batch", type=int, default=2, help="pictures of a step")
    given = parser.parse_args()

    from workbench.benchmark import memory  # imports torch, which takes seconds
    from workbench.benchmark.architecture import sdxl_like

    print(memory.table(memory.measure(sdxl_like(given.side, given.width, given.depth), given.batch)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
