"""Make the upstream packages' environments: `python -m reward_services.upstream.prepare DIRECTORY [PACKAGE ...]`."""

import sys
from pathlib import Path

from reward_services.upstream.environment import PACKAGES, prepare


def main() -> None:
    """Make `DIRECTORY/<package>` for each package, all by default."""
    if len(sys.argv) < 2 or not set(sys.argv[2:]) <= set(PACKAGES):
        sys.exit(f"{__doc__}\nPACKAGE is one of {', '.join(PACKAGES)}.")
    for package in sys.argv[2:] or PACKAGES:
        print(prepare(package, Path(sys.argv[1]) / package))


if __name__ == "__main__":
    main()
