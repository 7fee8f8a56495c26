"""Put claims to the test: python jobs/claims.py CONFIG.yaml [--dry-run] [dotted.path=value ...]."""

import argparse
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]  # this source, whatever is installed

from slingstone.config import load_as, to_yaml  # noqa: E402
from slingstone.config.claims import Claims  # noqa: E402
from slingstone.runtime.claims import plan  # noqa: E402


def main() -> int:
    """Check every run of all studies, then hand over to the driver."""
    parser = argparse.ArgumentParser(description="Compare ways of training over seeds, and write down what comes out.")
    parser.add_argument("config", help="YAML file of the studies, such as configs/claims/scenes.yaml")
    parser.add_argument("overrides", nargs="*", metavar="path=value", help="such as seeds=[0]")
    parser.add_argument("--dry-run", action="store_true", help="check everything, print the studies and stop")
    given = parser.parse_intermixed_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception, so that runs are taken down
    try:
        planned = plan.prepare(load_as(Claims, given.config, given.overrides))
        if given.dry_run:
            print(f"{to_yaml(planned.claims)}# {len(planned.runs)} runs for {len(planned.cells)} cells")
            return 0
        from slingstone.runtime.claims import driver  # imports torch and ray, which take seconds

        command = " ".join(["python jobs/claims.py", given.config, *given.overrides])
        driver.study(planned, command, say=lambda line: print(line, flush=True))
    except (ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
