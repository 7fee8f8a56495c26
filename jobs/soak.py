"""Run under faults: jobs/soak.py CONFIG.yaml [--faults N] [path=value ...]; needs the workbench, so a clone.

Compares the end of the run with that of the same run undisturbed.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]  # this source, whatever is installed

from slingstone import cli  # noqa: E402
from slingstone.arguments import expanded  # noqa: E402
from slingstone.config import load  # noqa: E402
from slingstone.driver import preflight  # noqa: E402

ARGUMENTS = cli.add_config(
    argparse.ArgumentParser(description="Run twice, once under faults, and compare bit for bit."),
    config="configs/soak/scenes.yaml",
    override="training.num_images=400",
)
ARGUMENTS.add_argument("--faults", type=int, default=20, help="how many, spread over the run (default: 20)")


def soak(given: argparse.Namespace) -> None:
    """Soak on a head and an MLflow server of its own; an error names every claim that does not hold."""
    experiment = preflight.prepare(load(given.config, given.overrides))
    from workbench.soak import faults, run  # import torch and ray, which take seconds

    planned = faults.plan(experiment.seed, experiment.training.num_images, given.faults)
    outcome = run.soak(experiment, planned, cli.say)
    cli.say(outcome.report(Path(experiment.storage)))
    if broken := [verdict.claim for verdict in outcome.verdicts if not verdict.holds]:
        raise RuntimeError(f"it does not hold that {'; '.join(broken)}")


if __name__ == "__main__":
    sys.exit(cli.run(soak, ARGUMENTS.parse_intermixed_args(expanded(sys.argv[1:]))))
