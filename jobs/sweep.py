"""Find good values of a run's configuration: python jobs/sweep.py CONFIG.yaml [--dry-run] [dotted.path=value ...]."""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]  # this source, whatever is installed

from slingstone.config import Sweep, load_as, to_yaml  # noqa: E402
from slingstone.driver import shell  # noqa: E402
from slingstone.sweep import trials  # noqa: E402

ARGUMENTS = shell.parser(
    "Vary a run's configuration and find what is best held out.",
    config="configs/sweep/scenes.yaml",
    override="search.trials=6",
    dry_run="check everything, print the sweep and stop",
)


def sweep(given: argparse.Namespace) -> None:
    """Check the sweep and every value that its trials may get, then hand over to the driver."""
    planned = trials.prepare(load_as(Sweep, given.config, given.overrides))
    if given.dry_run:
        print(to_yaml(planned.sweep), end="")
        return
    from slingstone.sweep import search  # imports torch and ray, which take seconds

    search.sweep(planned, shell.say)


if __name__ == "__main__":
    sys.exit(shell.run(sweep, ARGUMENTS))
