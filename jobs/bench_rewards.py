"""Measure what reward services cost: python jobs/bench_rewards.py [--rounds 5] ...; needs the workbench, so a clone."""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]  # this source, whatever is installed

from workbench import reward_benchmark  # noqa: E402


def main() -> int:
    """Measure, print the ratios, and fail if one is out of its bound."""
    parser = argparse.ArgumentParser(description="Throughput, overhead and preprocessing of the reward services.")
    parser.add_argument("--rounds", type=int, default=5, help="how often everything is measured")
    parser.add_argument(
        "--batches", type=int, default=8, help="batches of 16 pictures that a round asks of the service"
    )
    given = parser.parse_args()
    if given.rounds < 1 or given.batches < 1:
        parser.error(f"--rounds {given.rounds} --batches {given.batches}: both must be at least 1")
    summary = reward_benchmark.run(given.rounds, given.batches, say=lambda line: print(line, flush=True))
    return 0 if summary.met else 1


if __name__ == "__main__":
    sys.exit(main())
