"""What a submitted job takes along: the packages, its configuration, and small files that it names."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slingstone.config import load, to_yaml
from slingstone.config.paths import PACKAGED, ROOT, Departure, located
from slingstone.config.tree import Section

LIMIT = 100 * 2**20
"""Bytes that a cluster's dashboard takes from a submission."""
LEFT_OUT = ("__pycache__", "*.pyc")
"""What is in the packages and no job needs."""


def pack(directory: Path, config: str, tree: Section, departure: Departure) -> tuple[str, Any]:
    """Fill a directory, by links, with all that a job takes along; return its configuration, and the place in it.

    Args:
        directory: to fill; empty.
        config: file that the configuration was given as.
        tree: configuration of any kind of job, as it was loaded.
        departure: where its relative paths begin, and where it goes; its files go along.

    Raises:
        ValueError: something means nothing where the job runs, or is too large to go along.
    """
    own: dict[str, Path] = {}
    tree = _departing(directory, tree, departure, own)
    place = _write(directory, config, "run.yaml", tree)
    links = {name.removeprefix("platform/"): package for name, package in PACKAGED.items()}
    links |= own
    if (lock := ROOT / "constraints.txt").is_file():
        links[lock.name] = lock  # a run records which versions it was made by
    for name, path in (links | departure.files).items():
        if not (link := directory / name).exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    _refuse_large(directory)
    return place, tree


def _write(directory: Path, given: str, otherwise: str, tree: Section) -> str:
    """Write a configuration at the place that it was given from, if that is a relative one; return the place."""
    place = given if not Path(given).is_absolute() and ".." not in Path(given).parts else otherwise
    (directory / place).parent.mkdir(parents=True, exist_ok=True)
    (directory / place).write_text(to_yaml(tree))
    return place


def _departing(directory: Path, tree: Section, departure: Departure, own: dict[str, Path]) -> Section:
    """Return a configuration as its job reads it; the run that a sweep varies is written beside it.

    `own` takes note of the modules of rewards of the user's own.
    """
    if not isinstance(source := getattr(tree, "run", None), str):
        own |= _own_modules(tree, departure.base)
        return departure.of(tree)
    overrides = _texts(getattr(tree, "overrides", ()), departure)
    varied = departure.of(load(located(source, departure.base), overrides))
    own |= _own_modules(varied, departure.base)
    place = _write(directory, source, "varied.yaml", varied)
    dumped = tree.model_dump()
    untyped = {name: _texts(dumped[name], departure) for name in UNTYPED if name in dumped}
    moved = departure.of(type(tree).model_validate(dumped | untyped | {"run": place}))
    departure.files.pop(place, None)
    return moved.model_copy(update={"run": place})


UNTYPED = ("overrides", "trial_overrides", "space", "studies")
"""Sections in which paths of a run stand as mere texts."""


def _texts(value: Any, departure: Departure) -> Any:
    """Return plain values in which every text that names a file here, or `key=` such a file, is rewritten."""
    if isinstance(value, dict):
        return {key: _texts(inner, departure) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_texts(inner, departure) for inner in value]
    if isinstance(value, str) and "/" in value and "\n" not in value:
        key, equals, path = value.rpartition("=")
        return f"{key}{equals}{departure.read(path)}"
    return value


def _own_modules(tree: Section, base: Path) -> dict[str, Path]:
    """Return the modules of rewards of one's own, `package.module:Class`, that lie where the command is given."""
    rewards = getattr(tree, "rewards", None)
    models = [entry.model for entry in rewards.services if ":" in entry.model] if rewards else []
    tops = {model.partition(":")[0].partition(".")[0] for model in models} - {"slingstone", "reward_services"}
    places = [name for top in sorted(tops) for name in (top, f"{top}.py")]
    return {name: base / name for name in places if (base / name).exists()}


def _refuse_large(directory: Path) -> None:
    sizes = {path.relative_to(directory): path.stat().st_size for path in _files(directory)}
    if (total := sum(sizes.values())) > LIMIT:
        largest = sorted(sizes, key=lambda path: sizes[path], reverse=True)[:3]
        named = ", ".join(f"{path} ({sizes[path] / 2**20:.0f} MiB)" for path in largest)
        raise ValueError(
            f"what goes along with the job has {total / 2**20:.0f} MiB, and a cluster takes {LIMIT / 2**20:.0f}: above"
            f" all {named}; put large files where all nodes see them, and give their absolute paths"
        )


def _files(directory: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(directory, followlinks=True):
        folders[:] = [name for name in folders if name != "__pycache__"]
        yield from (Path(folder) / name for name in names if not name.endswith(".pyc"))
