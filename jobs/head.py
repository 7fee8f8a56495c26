"""The local Ray head of this clone: python jobs/head.py start | stop. `start` prints how a shell reaches it."""

import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "platform"))

from slingstone.driver.head import Head  # noqa: E402


def main() -> int:
    """Start or stop the head."""
    head = Head(ROOT)
    if sys.argv[1:] == ["start"]:
        try:
            environment = head.start()
        except RuntimeError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        print("\n".join(f"export {name}={shlex.quote(value)}" for name, value in environment.items()))
        return 0
    if sys.argv[1:] == ["stop"]:
        print("stopped the local Ray head" if head.stop() else "no local Ray head runs")
        return 0
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
