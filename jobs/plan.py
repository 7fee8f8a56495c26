"""What a run costs on so many GPUs: python jobs/plan.py CONFIG.yaml --gpus 64 [dotted.path=value ...]."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]  # this source, whatever is installed

from slingstone.config import load  # noqa: E402
from slingstone.driver import shell  # noqa: E402
from slingstone.plan.cost import DEVICES, Assumptions  # noqa: E402
from slingstone.plan.report import scaling  # noqa: E402

ARGUMENTS = shell.parser(
    "Model a run's step time and memory on 1 to 1,024 GPUs.",
    config="configs/align/sdxl.yaml",
    override="runtime.zero_stage=3",
)
ARGUMENTS.add_argument("--gpus", type=int, default=8, help="GPUs that train")
ARGUMENTS.add_argument("--device", choices=sorted(DEVICES), default="h100", help="kind of GPU")
ARGUMENTS.add_argument("--utilisation", type=float, default=0.3, help="part of the GPU's peak that networks reach")


def plan(given: argparse.Namespace) -> None:
    """Print the plan; nothing is loaded and nothing started."""
    if given.gpus < 1 or not 0 < given.utilisation <= 1:
        raise ValueError("--gpus must be at least 1, --utilisation above 0 and at most 1")
    assumed = replace(Assumptions(DEVICES[given.device]), utilisation=given.utilisation)
    print(scaling(load(given.config, given.overrides), given.gpus, assumed))


if __name__ == "__main__":
    sys.exit(shell.run(plan, ARGUMENTS))
