"""What lies behind a path, by content: the same bytes have the same digest, wherever they lie. Imports no torch."""

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

_PACKAGE_PARENT = Path(__file__).resolve().parents[1]


def local_path(checkpoint: str | Path) -> Path | None:
    """Return where a checkpoint lies, from here or from the folder that holds this package; None if on the hub."""
    for candidate in (Path(checkpoint), _PACKAGE_PARENT / checkpoint):
        if candidate.exists():
            return candidate.resolve()
    return None


def digest(facts: Any) -> str:
    """Return a short name for plain values, the same for the same values."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:10]


def digest_of(place: Path) -> str:
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
