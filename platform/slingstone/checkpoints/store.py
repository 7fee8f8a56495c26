"""Where checkpoints lie: a directory that all nodes see, or an object store. What is not published is never seen."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol, runtime_checkable

from slingstone.checkpoints.manifest import FILE
from slingstone.engines.shards import DamagedCheckpoint

NAME = re.compile(r"\d{12}")
"""A checkpoint is named by its images, so that names sort as they were made."""


@runtime_checkable
class Store(Protocol):
    """Checkpoints by name. All ranks write parts of one; then one process publishes the whole."""

    def names(self) -> list[str]:
        """Return what is published, oldest first."""
        ...

    def part(self, name: str) -> AbstractContextManager[Path]:
        """Yield a directory for this rank's files of a checkpoint; at the end they are safe where all ranks' are."""
        ...

    def publish(self, name: str, manifest: str) -> None:
        """Make the written parts a checkpoint, in one step; one of the same name is replaced."""
        ...

    def manifest(self, name: str) -> str:
        """Return the text of a checkpoint's manifest."""
        ...

    def opened(self, name: str) -> AbstractContextManager[Path]:
        """Yield a directory on this node that holds the checkpoint's files."""
        ...

    def delete(self, name: str) -> None:
        """Forget a checkpoint."""
        ...

    def set_aside(self, name: str) -> None:
        """Unpublish a damaged checkpoint; what can be kept of it stays."""
        ...

    def clear(self) -> None:
        """Delete what was begun and never published; nobody may be writing."""
        ...


def open_store(location: str) -> Store:
    """Return the store at a path or at a URI such as s3://bucket/runs."""
    return ObjectStore(location) if "://" in location else DirectoryStore(Path(location))


class DirectoryStore:
    """Checkpoints as directories of a file system whose rename is atomic; names with a dot before are in the making."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> list[str]:
        """See `Store`."""
        if not self.root.is_dir():
            return []
        return sorted(path.name for path in self.root.iterdir() if path.is_dir() and NAME.fullmatch(path.name))

    @contextmanager
    def part(self, name: str) -> Iterator[Path]:
        """See `Store`."""
        directory = self._incoming(name)
        directory.mkdir(parents=True, exist_ok=True)
        yield directory

    def publish(self, name: str, manifest: str) -> None:
        """See `Store`."""
        incoming, target, replaced = self._incoming(name), self.root / name, self.root / f".replaced-{name}"
        with (incoming / FILE).open("w", encoding="utf-8") as file:
            file.write(manifest)
            file.flush()
            os.fsync(file.fileno())
        for directory in {incoming, *(path.parent for path in incoming.rglob("*"))}:
            _sync(directory)
        if target.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            target.rename(replaced)
        incoming.rename(target)
        _sync(self.root)
        shutil.rmtree(replaced, ignore_errors=True)

    def manifest(self, name: str) -> str:
        """See `Store`."""
        try:
            return (self.root / name / FILE).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DamagedCheckpoint(f"checkpoint {name}: {FILE} cannot be read: {error}") from None

    @contextmanager
    def opened(self, name: str) -> Iterator[Path]:
        """See `Store`."""
        yield self.root / name

    def delete(self, name: str) -> None:
        """See `Store`."""
        doomed = self.root / f".deleted-{name}"
        shutil.rmtree(doomed, ignore_errors=True)
        (self.root / name).rename(doomed)  # first, so that a kill in between leaves no half of a checkpoint
        shutil.rmtree(doomed, ignore_errors=True)

    def set_aside(self, name: str) -> None:
        """See `Store`."""
        aside = self.root / f"damaged-{name}"
        shutil.rmtree(aside, ignore_errors=True)
        (self.root / name).rename(aside)

    def clear(self) -> None:
        """See `Store`."""
        for path in self.root.glob(".*-*") if self.root.is_dir() else ():
            shutil.rmtree(path, ignore_errors=True)

    def _incoming(self, name: str) -> Path:
        return self.root / f".incoming-{name}"


class ObjectStore:
    """Checkpoints under a prefix of what pyarrow reaches by URI; one with a manifest, written last, is published."""

    def __init__(self, uri: str) -> None:
        from pyarrow import fs

        self._files, self._root = fs.FileSystem.from_uri(uri.rstrip("/"))

    def names(self) -> list[str]:
        """See `Store`."""
        return [name for name in self._begun() if self._exists(f"{self._root}/{name}/{FILE}")]

    @contextmanager
    def part(self, name: str) -> Iterator[Path]:
        """See `Store`."""
        from pyarrow import fs

        with tempfile.TemporaryDirectory(prefix="slingstone-") as directory:
            yield Path(directory)
            target = f"{self._root}/{name}"
            self._files.create_dir(target, recursive=True)
            fs.copy_files(directory, target, source_filesystem=fs.LocalFileSystem(), destination_filesystem=self._files)

    def publish(self, name: str, manifest: str) -> None:
        """See `Store`."""
        with self._files.open_output_stream(f"{self._root}/{name}/{FILE}") as file:
            file.write(manifest.encode())

    def manifest(self, name: str) -> str:
        """See `Store`."""
        try:
            with self._files.open_input_stream(f"{self._root}/{name}/{FILE}") as file:
                return file.read().decode()
        except (OSError, UnicodeDecodeError) as error:
            raise DamagedCheckpoint(f"checkpoint {name}: {FILE} cannot be read: {error}") from None

    @contextmanager
    def opened(self, name: str) -> Iterator[Path]:
        """See `Store`."""
        from pyarrow import fs

        with tempfile.TemporaryDirectory(prefix="slingstone-") as directory:
            target = Path(directory) / name
            target.mkdir()
            fs.copy_files(
                f"{self._root}/{name}",
                str(target),
                source_filesystem=self._files,
                destination_filesystem=fs.LocalFileSystem(),
            )
            yield target

    def delete(self, name: str) -> None:
        """See `Store`."""
        self.set_aside(name)
        self._files.delete_dir(f"{self._root}/{name}")

    def set_aside(self, name: str) -> None:
        """See `Store`."""
        self._files.delete_file(f"{self._root}/{name}/{FILE}")

    def clear(self) -> None:
        """See `Store`."""
        for name in set(self._begun()) - set(self.names()):
            self._files.delete_dir(f"{self._root}/{name}")

    def _begun(self) -> list[str]:
        from pyarrow import fs

        found = self._files.get_file_info(fs.FileSelector(self._root, allow_not_found=True))
        return sorted(info.base_name for info in found if NAME.fullmatch(info.base_name))

    def _exists(self, path: str) -> bool:
        from pyarrow import fs

        return self._files.get_file_info(path).type == fs.FileType.File


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
