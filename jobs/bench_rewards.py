"""Measure what the reward services cost beside computing in process: python jobs/bench_rewards.py [--rounds 5] ..."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this source, whatever is installed

from workbench.reward_benchmark import run


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
    summary = run.run(given.rounds, given.batches, say=lambda line: print(line, flush=True))
    return 0 if summary.met else 1


if __name__ == "__main__":
    sys.exit(main())
