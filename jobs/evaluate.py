"""Evaluate models side by side: python jobs/evaluate.py CONFIG.yaml [--dry-run] [dotted.path=value ...]."""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]  # this source, whatever is installed

from slingstone.compare import shards  # noqa: E402
from slingstone.config import Comparison, load_as, to_yaml  # noqa: E402
from slingstone.driver import shell  # noqa: E402

ARGUMENTS = shell.parser(
    "Score any number of models on any sets of prompts.",
    config="configs/evaluate/scenes.yaml",
    override="prompts.parti.num_prompts=100",
    dry_run="check everything, print the evaluation and stop",
)


def evaluate(given: argparse.Namespace) -> None:
    """Check everything that can be checked here, then hand over to the driver."""
    comparison = shards.prepare(load_as(Comparison, given.config, given.overrides))
    if given.dry_run:
        print(to_yaml(comparison), end="")
        return
    from slingstone.compare import schedule  # imports torch and ray, which take seconds

    schedule.compare(comparison, shell.say)


if __name__ == "__main__":
    sys.exit(shell.run(evaluate, ARGUMENTS))
