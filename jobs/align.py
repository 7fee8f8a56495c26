"""Align a one-step generator: python jobs/align.py CONFIG.yaml [--dry-run] [dotted.path=value ...]."""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]  # this source, whatever is installed

from slingstone.config import load, to_yaml  # noqa: E402
from slingstone.driver import (  # noqa: E402
    preflight,
    shell,
)

ARGUMENTS = shell.parser(
    "Align a one-step generator with human preference.",
    config="configs/align/scenes.yaml",
    override="training.num_images=6400",
    dry_run="print the resolved run and its memory, and stop",
)


def align(given: argparse.Namespace) -> None:
    """Check everything that can be checked here, then hand over to the driver."""
    experiment = preflight.prepare(load(given.config, given.overrides))
    if given.dry_run:
        from slingstone.plan import report  # which may import torch, for unknown networks

        print(to_yaml(experiment) + report.dry_run(experiment), end="", flush=True)
        return
    from slingstone.driver import launch  # imports torch and ray, which take seconds

    launch.align(experiment, shell.say)


if __name__ == "__main__":
    sys.exit(shell.run(align, ARGUMENTS))
