"""Make the checkpoints of the embedded world: `python jobs/build_world.py configs/world/scenes.yaml`."""

import sys
from pathlib import Path

from workbench.recipe.settings import load_build


def main() -> None:
    """Check the settings, then run the stages."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    build = load_build(Path(sys.argv[1]))
    from workbench.recipe.stages import build_world

    build_world(build)


if __name__ == "__main__":
    main()
