"""`python -m slingstone`: the console command where only the packages are, as in a submitted job."""

import sys

from slingstone.cli import main

if __name__ == "__main__":
    sys.exit(main())
