"""Names of results by content: what is computed from the same bytes has the same name, wherever they lie."""

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any


def digest(facts: Any) -> str:
    """Return a short name for plain values, the same for the same values."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:10]


def by_content(facts: Any) -> Any:
    """Return plain values with a digest of what lies there in the place of each absolute path; a hub id stays."""
    if isinstance(facts, dict):
        return {name: by_content(value) for name, value in facts.items()}
    if isinstance(facts, list | tuple):
        return [by_content(value) for value in facts]
    if isinstance(facts, str) and Path(facts).is_absolute() and Path(facts).exists():
        return _of_place(Path(facts))
    return facts


def _of_place(place: Path) -> str:
    """Return the digest of a file, or of a directory's files with their names below it."""
    if place.is_file():
        return _of_file(str(place), *_state(place))
    files = sorted(file for file in place.rglob("*") if file.is_file())
    return digest([[str(file.relative_to(place)), _of_file(str(file), *_state(file))] for file in files])


def _state(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_size, found.st_mtime_ns


@cache  # within a process, where reading gigabytes again would cost more than it finds
def _of_file(file: str, size: int, mtime_ns: int) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
