"""What a checkpoint consists of: facts about itself, and the size and SHA-256 of each file."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from slingstone.engines.shards import DamagedCheckpoint, Files

FILE = "manifest.json"
FORMAT = 2


@dataclass(frozen=True)
class Facts:
    """What the checkpoint says about itself.

    Attributes:
        num_workers: ranks that wrote it, and that must read it.
        config: flat dump of the configuration.
        score: of the evaluation at this point, if there was one and one is asked for.
        rollbacks: how often training went back before this point.
    """

    images: int
    num_workers: int
    mlflow_run_id: str
    config: dict[str, str]
    score: float | None = None
    rollbacks: int = 0

    @property
    def name(self) -> str:
        """What the checkpoint is called."""
        return f"{self.images:012}"


@dataclass(frozen=True)
class Entry:
    """One file as it was written."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What one checkpoint says about itself, and its files by their paths in it."""

    facts: Facts
    files: Mapping[str, Entry]

    def to_json(self) -> str:
        """Return the text of manifest.json, which carries its own hash."""
        files = {name: asdict(entry) for name, entry in sorted(self.files.items())}
        body = {"format": FORMAT, "facts": asdict(self.facts), "files": files}
        return json.dumps(body | {"sha256": _digest(body)}, indent=1)

    @classmethod
    def from_json(cls, text: str, name: str) -> "Manifest":
        """Read back what `to_json` wrote.

        Raises:
            DamagedCheckpoint: it is not that, byte for byte, or another checkpoint's; names the checkpoint.
        """

        def damaged(reason: str) -> DamagedCheckpoint:
            return DamagedCheckpoint(f"checkpoint {name}: {reason}")

        try:
            body = json.loads(text)
            claimed = body.pop("sha256")
            files = {path: Entry(**entry) for path, entry in body["files"].items()}
            facts = dict(body["facts"])
            version, digest = body["format"], _digest(body)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise damaged(f"{FILE} is not one that slingstone wrote: {error!r}") from None
        if version != FORMAT:
            raise damaged(f"{FILE} has format {version!r}, this version reads {FORMAT}")
        if claimed != digest:
            raise damaged(f"{FILE} was changed after it was written")
        for path in files:
            if _leads_out(path):
                raise damaged(f"{FILE} names {path!r}, which lies outside of it")
        try:
            manifest = cls(Facts(**facts), files)
            if manifest.facts.name == name and isinstance(manifest.facts.config, dict):
                return manifest
        except (TypeError, ValueError):
            pass
        raise damaged("its manifest tells of another one")

    def check(self, directory: Path, names: Iterable[str]) -> None:
        """Compare the named files of a checkpoint's directory with what was written.

        Raises:
            DamagedCheckpoint: naming the first file that differs, and how.
        """
        for name in names:
            path, written, where = directory / name, self.files[name], f"checkpoint {directory.name}: {name}"
            if path.is_symlink() or not path.is_file():
                raise DamagedCheckpoint(f"{where} is missing")
            if (size := path.stat().st_size) != written.size:
                raise DamagedCheckpoint(f"{where} has {size} bytes instead of {written.size}: cut short or replaced")
            if entry_of(path) != written:
                raise DamagedCheckpoint(f"{where} was changed after it was written")


def entry_of(path: Path) -> Entry:
    """Return the size and hash of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Entry(file.tell(), digest)


def write(files: Files, directory: Path) -> dict[str, Entry]:
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


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _leads_out(path: str) -> bool:
    pure = PurePosixPath(path)
    return not path or pure.is_absolute() or ".." in pure.parts or "\\" in path or "\0" in path
