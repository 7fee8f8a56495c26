"""The processes of a cluster seen from outside: what each is for, its memory and files over time."""

import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import NamedTuple

import numpy as np
import psutil

RAY_TITLE = re.compile(r"ray::([\w:-]+)")
PROGRAMS = ("gcs_server", "raylet", "log_monitor", "dashboard", "monitor")
"""Ray's own, by a part of the path of their program."""
DAEMONS = {*PROGRAMS, "DashboardAgent", "RuntimeEnvAgent"}
"""Roles of what a cluster runs without a job: a run can neither free their memory nor close their files."""

EVERY_S = 3.0
WARM_UP = 0.3
"""Part of a process's life that is left out."""
WINDOW = 0.2
"""Part of its life over which a reading is taken, after the warm-up and at the end."""
LONG_LIVED_S = 240.0
MEMORY_TOLERANCE = 0.05
FILES_TOLERANCE = 5

Process = tuple[str, psutil.Process]
"""A role and the process that has it."""


def role(command: list[str]) -> str | None:
    """Return what a process is for, or None for one that waits for work or is not of a cluster."""
    if not command:
        return None
    if titled := RAY_TITLE.match(command[0]):
        return None if titled[1] == "IDLE" else titled[1].strip(":")
    if any(part.endswith("jobs/align.py") for part in command[:3]):
        return "driver"
    return next((name for name in PROGRAMS if any(name in part.rpartition("/")[2] for part in command[:3])), None)


def below(root: int) -> Iterator[tuple[psutil.Process, str]]:
    """Yield the processes that descend from one, with their roles."""
    try:
        children = psutil.Process(root).children(recursive=True)
    except psutil.Error:
        return
    for process in children:
        try:
            name = role(process.cmdline())
        except psutil.Error:  # ended meanwhile
            continue
        if name is not None:
            yield process, name


class Sample(NamedTuple):
    """One look at a process: its own memory, without what it shares and without files that it maps."""

    at_s: float
    memory: float
    files: float


@dataclass(frozen=True)
class Level:
    """How a process's memory in bytes and its open files moved, from after its warm-up to its end."""

    role: str
    memory: tuple[float, float]
    files: tuple[float, float]

    @property
    def growth(self) -> float:
        """Relative growth of the memory."""
        return self.memory[1] / self.memory[0] - 1

    @property
    def flat(self) -> bool:
        """Whether it did not grow by more than 5 %, nor opened more than a handful of files."""
        return self.growth <= MEMORY_TOLERANCE and self.files[1] - self.files[0] <= FILES_TOLERANCE


def level(role: str, samples: Sequence[Sample]) -> Level | None:
    """Return how a process moved, or None for one that did not live long."""
    begin, end = samples[0].at_s, samples[-1].at_s
    life = end - begin
    warm = begin + WARM_UP * life
    first = [sample for sample in samples if warm <= sample.at_s <= warm + WINDOW * life]
    last = [sample for sample in samples if sample.at_s >= end - WINDOW * life]
    if life < LONG_LIVED_S or not first:
        return None
    (_, *before), (_, *after) = (np.median(part, axis=0).tolist() for part in (first, last))
    memory, files = zip(before, after, strict=True)
    return Level(role, memory, files)


def levels(samples: Mapping[Process, Sequence[Sample]]) -> list[Level]:
    """Return how each long-lived process moved, those that grew most first."""
    found = [level(role, seen) for (role, _), seen in samples.items()]
    return sorted(filter(None, found), key=lambda one: one.growth, reverse=True)


class Meter:
    """Looks at the processes below one every few seconds, while entered; `root` returns its number, if it runs."""

    def __init__(self, root: Callable[[], int | None]) -> None:
        self._root = root
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.samples: dict[Process, list[Sample]] = {}

    def __enter__(self) -> "Meter":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(EVERY_S):
            if (root := self._root()) is not None:
                for process, name in below(root):
                    self._look(process, name)

    def _look(self, process: psutil.Process, name: str) -> None:
        try:
            memory = process.memory_info()
            sample = Sample(monotonic(), memory.rss - memory.shared, process.num_fds())
        except psutil.Error:
            return
        self.samples.setdefault((name, process), []).append(sample)
