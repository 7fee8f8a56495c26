"""Numbers on their way to MLflow, on disk before they are sent: an outage loses none, a restart counts none twice."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from slingstone.atomic import write_text


def journal_of(directory: Path, run_id: str) -> Path:
    """Return where the numbers of an MLflow run are kept, in the directory of the run."""
    return directory / f"metrics-{run_id}.jsonl"


class Point(NamedTuple):
    """One number at a position, in the order of MLflow's `Metric`."""

    name: str
    value: float
    timestamp_ms: int
    images: int


class Journal:
    """An append-only file of points, a line a record, and beside it how far it was delivered.

    A point that is sent again after a crash has its first timestamp, so that MLflow takes it for what it has; a
    continued run, which computes again what came after its last checkpoint, records only what is not here yet.

    Args:
        path: of the file; one process writes it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sent_path = path.with_name(path.name + ".sent")
        self._reached: dict[str, int] = {}
        self._cut_torn_line()
        for point in self._points(0):
            self._reached[point.name] = max(point.images, self._reached.get(point.name, point.images))

    def record(self, values: Mapping[str, float], images: int, timestamp_ms: int) -> None:
        """Take down the numbers that were not taken down at this position or after it."""
        new = {name: value for name, value in values.items() if images > self._reached.get(name, -1)}
        if not new:
            return
        self._reached |= dict.fromkeys(new, images)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"images": images, "ms": timestamp_ms, "values": new}) + "\n")

    def go_back(self, images: int) -> None:
        """Take down again what comes after a position: training returned there, and will compute other numbers."""
        self._reached = {name: min(reached, images) for name, reached in self._reached.items()}

    def undelivered(self) -> tuple[list[Point], int]:
        """Return what was recorded and not delivered, on disk by now, and the mark to `deliver` once it was sent."""
        if not self._path.is_file():
            return [], 0
        with self._path.open("rb") as file:
            os.fsync(file.fileno())  # what MLflow has, this file must have: else a restart would count it twice
            end = file.seek(0, os.SEEK_END)
        start = int(self._sent_path.read_text()) if self._sent_path.is_file() else 0
        return list(self._points(start, end)), end

    def deliver(self, mark: int) -> None:
        """Note that everything up to the mark was delivered."""
        write_text(self._sent_path, str(mark))

    def _points(self, start: int, end: int | None = None) -> Iterator[Point]:
        if not self._path.is_file():
            return
        with self._path.open("rb") as file:
            file.seek(start)
            while (end is None or file.tell() < end) and (line := file.readline()):
                entry: dict[str, Any] = json.loads(line)
                for name, value in entry["values"].items():
                    yield Point(name, value, entry["ms"], entry["images"])

    def _cut_torn_line(self) -> None:
        """Remove the half of a line that a crash of the machine may leave."""
        if self._path.is_file():
            data = self._path.read_bytes()
            whole = data.rfind(b"\n") + 1
            if whole < len(data):
                os.truncate(self._path, whole)
