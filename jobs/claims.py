"""Put claims to the test: jobs/claims.py CONFIG.yaml [--dry-run] [path=value ...]; needs the workbench, so a clone."""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]  # this source, whatever is installed

from slingstone.config import load_as, to_yaml  # noqa: E402
from slingstone.driver import shell  # noqa: E402
from workbench.claims import plan  # noqa: E402

ARGUMENTS = shell.parser(
    "Compare ways of training over seeds, and write down what comes out.",
    config="configs/claims/scenes.yaml",
    override="seeds=[0]",
    dry_run="check everything, print the studies and stop",
)


def study(given: argparse.Namespace) -> None:
    """Check every run of all studies, then hand over to the driver."""
    planned = plan.prepare(load_as(plan.Claims, given.config, given.overrides))
    if given.dry_run:
        print(f"{to_yaml(planned.claims)}# {len(planned.runs)} runs for {len(planned.cells)} cells")
        return
    from workbench.claims import studies  # imports torch and ray, which take seconds

    # Where results lie changes none of them.
    told = [override for override in given.overrides if not override.startswith("storage=")]
    studies.study(planned, " ".join(["python jobs/claims.py", given.config, *told]), shell.say)


if __name__ == "__main__":
    sys.exit(shell.run(study, ARGUMENTS))
