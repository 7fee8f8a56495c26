"""Measure the platform's cost: python jobs/bench.py CONFIG.yaml [--rounds 8] [--steps 4] [dotted.path=value ...]."""

import argparse
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]  # this source, whatever is installed

from slingstone.config import load  # noqa: E402
from slingstone.runtime import preflight  # noqa: E402


def main() -> int:
    """Check the run, then measure it beside a plain loop of the same maths."""
    parser = argparse.ArgumentParser(description="Measure a run's platform tax and the reward latency that it hides.")
    parser.add_argument("config", help="YAML file of the run, such as configs/align/scenes.yaml")
    parser.add_argument("overrides", nargs="*", metavar="path=value", help="such as training.batch_size=128")
    parser.add_argument("--rounds", type=int, default=8, help="how often job and plain loop take turns")
    parser.add_argument("--steps", type=int, default=4, help="training steps of a turn")
    given = parser.parse_intermixed_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception, so that rewards are taken down
    try:
        run = preflight.prepare(load(given.config, given.overrides))
        from slingstone.runtime.benchmark import driver  # imports torch and ray, which take seconds

        driver.bench(run, given.rounds, given.steps, say=lambda line: print(line, flush=True))
    except (ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
