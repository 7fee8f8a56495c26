"""Where things are: the paths of a configuration, made absolute once; and sources that moved since a job named them."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, Field, ValidationError
from pydantic_core import PydanticCustomError

PACKAGES = Path(__file__).resolve().parents[2]
"""What holds this package: platform/ of the sources, or where a wheel is installed."""
ROOT = PACKAGES.parent if PACKAGES.name == "platform" else PACKAGES
"""What holds reward_services: the root of the sources, or where a wheel is installed."""
PACKAGED = {"platform/slingstone": PACKAGES / "slingstone", "reward_services": ROOT / "reward_services"}
"""How configurations name the packages that go along with a job, and where they are here."""
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


class Departure:
    """Rewrites the paths of a configuration for the machine where it will run, from the one where it was given.

    What lies in the packages goes along with every job, and is found from where they are unpacked. On the same machine
    other files get absolute paths. On another one absolute paths are that machine's, and files that are given by
    relative ones go along, at the same place below the job's directory.

    Args:
        base: where relative paths begin.
        far: whether another machine runs it.
    """

    def __init__(self, base: Path, far: bool = False) -> None:
        self.base, self.far = base, far
        self.files: dict[str, Path] = {}
        """Places below the job's directory, and the files or directories here that go there."""

    def of(self, section: Tree) -> Tree:
        """Return a section with its paths rewritten.

        Raises:
            ValueError: naming every path that means nothing on the other machine.
        """
        return _with_paths(section, self)

    def read(self, path: str) -> str:
        """Return how the job finds a file that it reads, and take note of what must go along for that."""
        found = Path(located(path, self.base))
        if not found.is_absolute() or not found.exists():
            return path
        if (inside := in_packages(found)) is not None:
            return inside
        if not self.far:
            return str(found)
        if not Path(path).expanduser().is_absolute():
            if ".." in Path(path).parts:
                said = "lies above the directory that it is given from; give the absolute path by which nodes see it"
                raise PydanticCustomError("above", said)
            self.files[str(Path(path))] = found
        return path

    def written(self, path: str) -> str:
        """Return where the job writes."""
        if self.far and "://" not in path and not Path(path).is_absolute():
            raise PydanticCustomError(
                "relative", "is relative; give an absolute path that all nodes of the cluster see"
            )
        return _written(path, self.base)

    def uri(self, uri: str) -> str:
        """Return a URI of MLflow as the job reaches it."""
        return absolute_uri(uri, self.base)


def in_packages(path: Path) -> str | None:
    """Return how configurations name a file of the packages; None of any other."""
    for name, package in PACKAGED.items():
        if path.is_relative_to(package):
            return f"{name}/{path.relative_to(package)}".removesuffix("/.")
    return None


def _when_resolving(change: Callable[[str, Path], str], departing: Callable[[Departure, str], str]) -> AfterValidator:
    def resolve(path: str, info: Any) -> str:  # pydantic's protocol of it cannot be checked at run time
        if isinstance(info.context, Departure):
            return departing(info.context, path)
        return change(path, info.context) if isinstance(info.context, Path) else path

    return AfterValidator(resolve)


PathText = Annotated[str, Field(min_length=1), _when_resolving(located, Departure.read)]
"""What is read: a file, a directory or a hub id."""
Storage = Annotated[str, Field(min_length=1), _when_resolving(_written, Departure.written)]
"""What is written to: a directory, or a URI."""
StoreUri = Annotated[str, Field(min_length=1), _when_resolving(absolute_uri, Departure.uri)]
"""Where MLflow keeps runs: a URI, or a path."""


def resolved(section: Tree, base: Path | None = None) -> Tree:
    """Return a section with absolute paths, hub ids and URIs as they are: the same in every process of a cluster.

    Args:
        section: any part of a configuration.
        base: where relative paths begin; the working directory if it is not given.

    Raises:
        ValueError: naming every place that would not last.
    """
    return _with_paths(section, base or Path.cwd())


def _with_paths(section: Tree, context: "Path | Departure") -> Tree:
    try:
        return type(section).model_validate(section.model_dump(), context=context)
    except ValidationError as error:
        found = [f"{'.'.join(map(str, one['loc']))} = {one['input']!r}: {one['msg']}" for one in error.errors()]
        raise ValueError("\n".join(found)) from None
