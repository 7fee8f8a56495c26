"""A run under faults against the same undisturbed: python jobs/soak.py CONFIG.yaml [--faults N] [path=value ...]."""

import argparse
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]  # this source, whatever is installed

from slingstone.config import load  # noqa: E402
from slingstone.runtime import preflight  # noqa: E402


def main() -> int:
    """Soak on a head and an MLflow server of its own; 0 if every claim holds."""
    parser = argparse.ArgumentParser(description="Run twice, once under faults, and compare bit for bit.")
    parser.add_argument("config", help="YAML file of the run, such as configs/soak/scenes.yaml")
    parser.add_argument("overrides", nargs="*", metavar="path=value", help="such as training.num_images=400")
    parser.add_argument("--faults", type=int, default=20, help="how many, spread over the run (default: 20)")
    given = parser.parse_intermixed_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception, so that head and server are taken down
    try:
        run = preflight.prepare(load(given.config, given.overrides))
        from slingstone.runtime import soak  # imports torch and ray, which take seconds

        faults = soak.plan(run.seed, run.training.num_images, given.faults)
        outcome = soak.soak(run, faults, say=lambda line: print(line, flush=True))
    except (ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(soak.report(outcome, Path(run.storage)), flush=True)
    return 0 if outcome.holds else 1


if __name__ == "__main__":
    sys.exit(main())
