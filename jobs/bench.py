"""Measure the platform's cost: jobs/bench.py CONFIG.yaml [--rounds 8] ...; needs the workbench, so a clone."""

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
    argparse.ArgumentParser(description="Measure a run's platform tax and the reward latency that it hides."),
    config="configs/align/scenes.yaml",
    override="training.batch_size=128",
)
ARGUMENTS.add_argument("--rounds", type=int, default=8, help="how often job and plain loop take turns")
ARGUMENTS.add_argument("--steps", type=int, default=4, help="training steps of a turn")


def bench(given: argparse.Namespace) -> None:
    """Check the run, then measure it beside a plain loop of the same maths."""
    experiment = preflight.prepare(load(given.config, given.overrides))
    from workbench.benchmark import platform_cost  # imports torch and ray, which take seconds

    platform_cost.bench(experiment, given.rounds, given.steps, cli.say)


if __name__ == "__main__":
    sys.exit(cli.run(bench, ARGUMENTS.parse_intermixed_args(expanded(sys.argv[1:]))))
