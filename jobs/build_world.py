"""Make the embedded world: jobs/build_world.py configs/world/scenes.yaml; needs the workbench, so a clone."""

import sys

from slingstone.config import load_as
from workbench.recipe.settings import WorldBuild


def main() -> None:
    """Check the settings, then run the stages."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    build = load_as(WorldBuild, sys.argv[1])
    from workbench.recipe.stages import build_world

    build_world(build)


if __name__ == "__main__":
    main()
