"""Demand that the native rewards equal the upstream packages: python jobs/parity.py DIRECTORY [--golden ...].

DIRECTORY keeps the packages' environments. The packages judge by themselves, and as services with `backend: upstream`.
"""

import argparse
import shutil
import sys
from pathlib import Path

from workbench.local_cluster import local_cluster
from workbench.parity import check


def main() -> int:
    """Make the environments, run both sides, print a row a comparison, and fail if one differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--golden", type=Path, help="also keep upstream's results there, for the tests")
    given = parser.parse_args()
    root, found = given.directory.absolute(), []
    for row, result in check.by_package(root):
        print(f"by itself    {row}", flush=True)
        found.append(row)
        if given.golden is not None:
            given.golden.mkdir(parents=True, exist_ok=True)
            shutil.copy(result, given.golden)
    with local_cluster():
        for row in check.by_service(root):
            print(f"as a service {row}", flush=True)
            found.append(row)
    return 0 if all(row.equal for row in found) else 1


if __name__ == "__main__":
    sys.exit(main())
