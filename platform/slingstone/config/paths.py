"""Where things are: the paths of a configuration, made absolute once; and sources that moved since a job named them."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, Field, ValidationError
from pydantic_core import PydanticCustomError

PACKAGES = Path(__file__).resolve().parents[2]
"""What holds this package: platform/ of the sources, or where a wheel is installed."""
ROOT = PACKAGES.parent if PACKAGES.name == "platform" else PACKAGES
"""What holds reward_services: the root of the sources, or where a wheel is installed."""
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+(/.+\.(safetensors|bin|pt|pth))?")
"""A repository, or a file of weights in one."""
UNPACKED = re.compile(r"^/.*/working_dir_files/[^/]+/")
"""Where Ray unpacks a job's working directory."""
MANAGED = ("databricks", "databricks-uc", "uc")
"""Stores of MLflow that look like a path."""

Tree = TypeVar("Tree", bound=BaseModel)


def located(path: str, base: Path | None = None) -> str:
    """Return the absolute path of what exists below `base` (the working directory) or beside the source; else the text.

    What a job recorded of sources that were unpacked for it, and are gone since, is found beside this source; and so is
    what the configurations name in platform/, wherever a wheel is installed.
    """
    inside, given = of_sources(path), Path(path).expanduser()
    for place in ((base or Path.cwd()) / given, ROOT / path, ROOT / inside, PACKAGES / inside):
        if place.exists():
            return str(place.resolve())
    return path


def of_sources(value: str) -> str:
    """Return a value; of a path into the sources, what comes after the place where a process found them.

    Each cluster unpacks the sources that come with a job into a directory of its own, and a wheel has no platform/.
    """
    inside = UNPACKED.sub("", value.removeprefix(f"{PACKAGES}/").removeprefix(f"{ROOT}/"))
    return inside.removeprefix("platform/")


def _written(path: str, base: Path) -> str:
    """Return the absolute path of what is written; URIs stay as they are."""
    if "://" in path:
        return path
    found = str((base / Path(path).expanduser()).resolve())
    if UNPACKED.match(f"{found}/"):
        remedy = "give an absolute path that all nodes see"
        raise PydanticCustomError("gone", f"lies in a directory that Ray made for this job and deletes; {remedy}")
    if odd := re.search("[?%#]", found):
        said = "holds {letter}, which means something else in a URI; give another directory"
        raise PydanticCustomError("odd", said, {"letter": repr(odd[0])})
    return found


def absolute_uri(uri: str, base: Path) -> str:
    """Return a URI of MLflow with the absolute path of the file or directory that it names, if it names one."""
    parts = urlsplit(uri, allow_fragments=False)
    if parts.netloc or uri in MANAGED:
        return uri
    if parts.scheme.startswith("sqlite"):
        if (path := parts.path[1:]) in ("", ":memory:"):
            raise PydanticCustomError("memory", "is a database in memory, another one in each process; name a file")
        return f"{parts.scheme}:///{_written(path, base)}{parts.query and '?'}{parts.query}"
    if parts.scheme == "file":
        return f"file://{_written(parts.path, base)}"
    return uri if parts.scheme else _written(uri, base)


def _when_resolving(change: Callable[[str, Path], str]) -> AfterValidator:
    return AfterValidator(lambda path, info: change(path, info.context) if isinstance(info.context, Path) else path)


PathText = Annotated[str, Field(min_length=1), _when_resolving(located)]
"""What is read: a file, a directory or a hub id."""
Storage = Annotated[str, Field(min_length=1), _when_resolving(_written)]
"""What is written to: a directory, or a URI."""
StoreUri = Annotated[str, Field(min_length=1), _when_resolving(absolute_uri)]
"""Where MLflow keeps runs: a URI, or a path."""


def resolved(section: Tree, base: Path | None = None) -> Tree:
    """Return a section with absolute paths, hub ids and URIs as they are: the same in every process of a cluster.

    Args:
        section: any part of a configuration.
        base: where relative paths begin; the working directory if it is not given.

    Raises:
        ValueError: naming every place that would not last.
    """
    try:
        return type(section).model_validate(section.model_dump(), context=base or Path.cwd())
    except ValidationError as error:
        found = [f"{'.'.join(map(str, one['loc']))} = {one['input']!r}: {one['msg']}" for one in error.errors()]
        raise ValueError("\n".join(found)) from None
