"""Align a one-step generator: python jobs/align.py CONFIG.yaml [--dry-run] [dotted.path=value ...]."""

import argparse
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]  # this source, whatever is installed

from slingstone.config import load, to_yaml  # noqa: E402
from slingstone.runtime import preflight  # noqa: E402


def main() -> int:
    """Check everything that can be checked here, then hand over to the driver."""
    parser = argparse.ArgumentParser(description="Align a one-step generator with human preference.")
    parser.add_argument("config", help="YAML file of the run, such as configs/align/scenes.yaml")
    parser.add_argument("overrides", nargs="*", metavar="path=value", help="such as training.num_images=6400")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved run and stop")
    given = parser.parse_intermixed_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception, so that rewards are taken down
    try:
        run = preflight.prepare(load(given.config, given.overrides))
        if given.dry_run:
            from slingstone.runtime import memory  # which may import torch, for unknown networks

            print(to_yaml(run) + memory.describe(run), end="", flush=True)
            return 0
        from slingstone.runtime import launch  # imports torch and ray, which take seconds

        launch.align(run, say=lambda line: print(line, flush=True))
    except (ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
