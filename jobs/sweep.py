"""Find good values of a run's configuration: python jobs/sweep.py CONFIG.yaml [--dry-run] [dotted.path=value ...]."""

import argparse
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]  # this source, whatever is installed

from slingstone.config import Sweep, load_as, to_yaml  # noqa: E402
from slingstone.runtime.sweep import plan  # noqa: E402


def main() -> int:
    """Check the sweep and every value that its trials may get, then hand over to the driver."""
    parser = argparse.ArgumentParser(description="Vary a run's configuration and find what is best held out.")
    parser.add_argument("config", help="YAML file of the sweep, such as configs/sweep/scenes.yaml")
    parser.add_argument("overrides", nargs="*", metavar="path=value", help="such as search.trials=6")
    parser.add_argument("--dry-run", action="store_true", help="check everything, print the sweep and stop")
    given = parser.parse_intermixed_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception, so that rewards are taken down
    try:
        planned = plan.prepare(load_as(Sweep, given.config, given.overrides))
        if given.dry_run:
            print(to_yaml(planned.sweep), end="")
            return 0
        from slingstone.runtime.sweep import driver  # imports torch and ray, which take seconds

        driver.sweep(planned, say=lambda line: print(line, flush=True))
    except (ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
