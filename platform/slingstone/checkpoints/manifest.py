"""What a checkpoint consists of: the size and SHA-256 of each file, and facts. Imports neither torch nor ray."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from slingstone.engines.shards import DamagedCheckpoint

FILE = "manifest.json"
FORMAT = 1
CHUNK = 2**20


@dataclass(frozen=True)
class Entry:
    """One file as it was written."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The files of one checkpoint by their paths in it, and what it says about itself."""

    facts: Mapping[str, Any]
    files: Mapping[str, Entry]

    def to_json(self) -> str:
        """Return the text of manifest.json, which carries its own hash."""
        files = {name: asdict(entry) for name, entry in sorted(self.files.items())}
        body = {"format": FORMAT, "facts": dict(self.facts), "files": files}
        return json.dumps(body | {"sha256": _digest(body)}, indent=1)

    @classmethod
    def from_json(cls, text: str, name: str) -> "Manifest":
        """Read back what `to_json` wrote.

        Raises:
            DamagedCheckpoint: it is not that, byte for byte; names the checkpoint.
        """
        try:
            body = json.loads(text)
            claimed = body.pop("sha256")
            files = {path: Entry(**entry) for path, entry in body["files"].items()}
            facts = dict(body["facts"])
            version, digest = body["format"], _digest(body)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DamagedCheckpoint(f"checkpoint {name}: {FILE} is not one that slingstone wrote: {error!r}") from None
        if version != FORMAT:
            raise DamagedCheckpoint(f"checkpoint {name}: {FILE} has format {version!r}, this version reads {FORMAT}")
        if claimed != digest:
            raise DamagedCheckpoint(f"checkpoint {name}: {FILE} was changed after it was written")
        for path in files:
            _refuse_escape(path, name)
        return cls(facts, files)

    def check(self, directory: Path, names: Iterable[str]) -> None:
        """Compare files with what was written.

        Args:
            directory: of the checkpoint.
            names: files to read; all of them are `self.files`.

        Raises:
            DamagedCheckpoint: naming the first file that differs, and how.
        """
        for name in names:
            path, said = directory / name, self.files[name]
            if path.is_symlink() or not path.is_file():
                raise DamagedCheckpoint(f"checkpoint {directory.name}: {name} is missing")
            if path.stat().st_size != said.size:
                found = f"has {path.stat().st_size} bytes instead of {said.size}"
                raise DamagedCheckpoint(f"checkpoint {directory.name}: {name} {found}: it was cut short or replaced")
            if entry_of(path) != said:
                raise DamagedCheckpoint(f"checkpoint {directory.name}: {name} was changed after it was written")


def entry_of(path: Path) -> Entry:
    """Return the size and hash of a file."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return Entry(size, digest.hexdigest())


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _refuse_escape(path: str, name: str) -> None:
    pure = PurePosixPath(path)
    if not path or pure.is_absolute() or ".." in pure.parts or "\\" in path or "\0" in path:
        raise DamagedCheckpoint(f"checkpoint {name}: {FILE} names {path!r}, which lies outside of it")


def write(files: Mapping[str, Any], directory: Path) -> dict[str, Entry]:
    """Write trees and wait until they are on disk; return what they are."""
    entries = {}
    for name, tree in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            torch.save(tree, file)
            file.flush()
            os.fsync(file.fileno())
        entries[name] = entry_of(path)
    return entries
