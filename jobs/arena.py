"""Open an arena: python jobs/arena.py CONFIG.yaml [--dry-run] [dotted.path=value ...]."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]  # this source, whatever is installed

from slingstone.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(["arena", *sys.argv[1:]]))
