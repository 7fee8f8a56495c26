"""Files and directories that are whole or not there, whatever stops their writer and whoever writes beside it."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

PREFIX = ".partial-"
ABANDONED_S = 86_400.0
"""Age at which what a killed writer left is deleted."""


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield a path beside the target to write a file or a directory at; at the end it takes the target's place.

    The name is unique over all hosts of a shared disk, and keeps the target's suffix. An exception leaves the target
    as it was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = _beside(target)
    try:
        yield partial
        publish(partial, target)
    finally:
        _delete(partial)


def publish(partial: Path, target: Path) -> None:
    """Wait until a file or a directory is on disk, and rename it to the target, which it replaces.

    A directory is replaced by two renames: a kill between them leaves none, never a mixture of both.
    """
    for path in [partial, *partial.rglob("*")] if partial.is_dir() else [partial]:
        _sync(path)
    replaced = _beside(target) if target.is_dir() else None
    if replaced:
        target.rename(replaced)
    partial.rename(target)
    _sync(target.parent)
    if replaced:
        _delete(replaced)
    for left in target.parent.glob(f"{PREFIX}*-{target.name}"):
        with suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > ABANDONED_S:
                _delete(left)


def write_text(target: Path, text: str) -> None:
    """Write a text file."""
    with replacing(target) as partial:
        partial.write_text(text, encoding="utf-8")


def read_json(path: Path) -> Any:
    """Return what a file of JSON holds; None if there is none or it is cut short, so that it is made again."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def _beside(target: Path) -> Path:
    return target.with_name(f"{PREFIX}{uuid4().hex}-{target.name}")


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
