"""Where things are: the paths of a configuration, made absolute once; and sources that moved since a job named them."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, Field

PACKAGES = Path(__file__).resolve().parents[2]
"""What holds this package: platform/ of the sources, or where a wheel is installed."""
ROOT = PACKAGES.parent if PACKAGES.name == "platform" else PACKAGES
"""What holds reward_services: the root of the sources, or where a wheel is installed."""
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+(/.+\.(safetensors|bin|pt|pth))?")
"""A repository, or a file of weights in one."""
UNPACKED = re.compile(r"^/.*/working_dir_files/[^/]+/")
"""Where Ray unpacks a job's working directory."""
RESOLVING = "resolving"
"""pydantic's context while `resolved` validates."""

Tree = TypeVar("Tree", bound=BaseModel)


def located(path: str) -> str:
    """Return the absolute path of what exists in the working directory or beside the source; else the text itself.

    What a job recorded of sources that were unpacked for it, and are gone since, is found beside this source; and so is
    what the configurations name in platform/, wherever a wheel is installed.
    """
    inside = of_sources(path)
    for place in (Path.cwd() / path, ROOT / path, ROOT / inside, PACKAGES / inside):
        if place.exists():
            return str(place.resolve())
    return path


def of_sources(value: str) -> str:
    """Return a value; of a path into the sources, what comes after the place where a process found them.

    Each cluster unpacks the sources that come with a job into a directory of its own, and a wheel has no platform/.
    """
    inside = UNPACKED.sub("", value.removeprefix(f"{PACKAGES}/").removeprefix(f"{ROOT}/"))
    return inside.removeprefix("platform/")


def _when_resolving(change: Callable[[str], str]) -> AfterValidator:
    return AfterValidator(lambda path, info: change(path) if info.context == RESOLVING else path)


PathText = Annotated[str, Field(min_length=1), _when_resolving(located)]
"""What is read: a file, a directory or a hub id."""
Storage = Annotated[str, Field(min_length=1), _when_resolving(lambda path: str(Path(path).resolve()))]
"""A directory that is written to."""


def resolved(section: Tree) -> Tree:
    """Return a section with absolute paths, hub ids as they are: the same in every process of a cluster."""
    return type(section).model_validate(section.model_dump(), context=RESOLVING)
