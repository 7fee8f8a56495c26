"""Profile three training steps: jobs/trace_steps.py CONFIG.yaml [overrides]; needs the workbench, so a clone."""

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
    argparse.ArgumentParser(description="Write a torch.profiler trace of three steps of a run."),
    config="configs/align/scenes.yaml",
    override="runtime.num_workers=1",
)


def trace(given: argparse.Namespace) -> None:
    """Check the run, then trace it."""
    experiment = preflight.prepare(load(given.config, given.overrides))
    from workbench import trace_steps  # imports torch and ray, which take seconds

    trace_steps.trace(experiment, cli.say)


if __name__ == "__main__":
    sys.exit(cli.run(trace, ARGUMENTS.parse_intermixed_args(expanded(sys.argv[1:]))))
