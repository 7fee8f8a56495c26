"""Where checkpoints lie: a directory that all nodes see, or an object store. What is not published is never seen."""

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyarrow import fs

from slingstone import atomic
from slingstone.checkpoints.manifest import FILE, Manifest
from slingstone.engines.shards import DamagedCheckpoint

NAME = re.compile(r"\d{12}")
"""A checkpoint is named by its images, so that names sort as they were made."""


class DirectoryStore:
    """Checkpoints as directories of a file system whose rename is atomic; names with a dot before are in the making.

    All ranks write parts of one; then one process publishes the whole.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> list[str]:
        """Return what is published, oldest first."""
        if not self.root.is_dir():
            return []
        return sorted(path.name for path in self.root.iterdir() if path.is_dir() and NAME.fullmatch(path.name))

    @contextmanager
    def part(self, name: str) -> Iterator[Path]:
        """Yield a directory for this rank's files of a checkpoint; at the end they are safe where all ranks' are."""
        directory = self._incoming(name)
        directory.mkdir(parents=True, exist_ok=True)
        yield directory

    def publish(self, name: str, manifest: str) -> None:
        """Make the written parts a checkpoint, in one step; one of the same name is replaced."""
        incoming = self._incoming(name)
        (incoming / FILE).write_text(manifest, encoding="utf-8")
        atomic.publish(incoming, self.root / name)

    def rewrite(self, name: str, manifest: str) -> None:
        """Replace the manifest of a published checkpoint."""
        atomic.write_text(self.root / name / FILE, manifest)

    def manifest(self, name: str) -> str:
        """Return the text of a checkpoint's manifest."""
        return (self.root / name / FILE).read_text(encoding="utf-8")

    @contextmanager
    def opened(self, name: str) -> Iterator[Path]:
        """Yield a directory on this node that holds the checkpoint's files."""
        yield self.root / name

    def delete(self, name: str) -> None:
        """Delete a checkpoint."""
        self._move(name, f".deleted-{name}")  # first, so that a kill in between leaves no half of a checkpoint
        shutil.rmtree(self.root / f".deleted-{name}", ignore_errors=True)

    def set_aside(self, name: str) -> None:
        """Unpublish a damaged checkpoint; what can be kept of it stays."""
        self._move(name, f"damaged-{name}")

    def clear(self) -> None:
        """Delete what was begun and never published; nobody may be writing."""
        for path in self.root.glob(".*-*") if self.root.is_dir() else ():
            shutil.rmtree(path, ignore_errors=True)

    def _incoming(self, name: str) -> Path:
        return self.root / f".incoming-{name}"

    def _move(self, name: str, other: str) -> None:
        shutil.rmtree(self.root / other, ignore_errors=True)
        (self.root / name).rename(self.root / other)


class ObjectStore:
    """The same under a prefix of what pyarrow reaches by URI; what has a manifest, written last, is published."""

    def __init__(self, uri: str) -> None:
        self._files, self._root = fs.FileSystem.from_uri(uri.rstrip("/"))

    def names(self) -> list[str]:
        """Return what is published, oldest first."""
        begun = self._begun()
        manifests = self._files.get_file_info([f"{self._root}/{name}/{FILE}" for name in begun])
        return [name for name, found in zip(begun, manifests, strict=True) if found.type == fs.FileType.File]

    @contextmanager
    def part(self, name: str) -> Iterator[Path]:
        """Yield a directory of this node whose files are uploaded at the end."""
        with tempfile.TemporaryDirectory(prefix="slingstone-") as directory:
            yield Path(directory)
            self._files.create_dir(f"{self._root}/{name}", recursive=True)
            fs.copy_files(directory, f"{self._root}/{name}", destination_filesystem=self._files)

    def publish(self, name: str, manifest: str) -> None:
        """Upload the manifest."""
        with self._files.open_output_stream(f"{self._root}/{name}/{FILE}") as file:
            file.write(manifest.encode())

    def rewrite(self, name: str, manifest: str) -> None:
        """Replace the manifest of a published checkpoint."""
        self.publish(name, manifest)

    def manifest(self, name: str) -> str:
        """Return the text of a checkpoint's manifest."""
        with self._files.open_input_stream(f"{self._root}/{name}/{FILE}") as file:
            return file.read().decode()

    @contextmanager
    def opened(self, name: str) -> Iterator[Path]:
        """Yield a directory of this node with copies of the checkpoint's files."""
        with tempfile.TemporaryDirectory(prefix="slingstone-") as directory:
            target = Path(directory) / name
            target.mkdir()
            fs.copy_files(f"{self._root}/{name}", str(target), source_filesystem=self._files)
            yield target

    def delete(self, name: str) -> None:
        """Delete a checkpoint, its manifest first."""
        self.set_aside(name)
        self._files.delete_dir(f"{self._root}/{name}")

    def set_aside(self, name: str) -> None:
        """Delete the manifest alone; the next start deletes the rest."""
        self._files.delete_file(f"{self._root}/{name}/{FILE}")

    def clear(self) -> None:
        """Delete what has no manifest; nobody may be writing."""
        for name in set(self._begun()) - set(self.names()):
            self._files.delete_dir(f"{self._root}/{name}")

    def _begun(self) -> list[str]:
        found = self._files.get_file_info(fs.FileSelector(self._root, allow_not_found=True))
        return sorted(info.base_name for info in found if NAME.fullmatch(info.base_name))


Store = DirectoryStore | ObjectStore


def open_store(location: str) -> Store:
    """Return the store at a path or at a URI such as s3://bucket/runs."""
    return ObjectStore(location) if "://" in location else DirectoryStore(Path(location))


def read_manifest(store: Store, name: str) -> Manifest:
    """Return the manifest of a published checkpoint.

    Raises:
        DamagedCheckpoint: it cannot be read, or is not what was written.
    """
    try:
        text = store.manifest(name)
    except (OSError, UnicodeDecodeError) as error:
        raise DamagedCheckpoint(f"checkpoint {name}: {FILE} cannot be read: {error}") from None
    return Manifest.from_json(text, name)
