"""Memory and files of every process over time, and whether they stay level."""

import threading
from collections.abc import Mapping, Sequence
from statistics import median
from time import monotonic
from types import TracebackType
from typing import NamedTuple, Protocol, runtime_checkable

import psutil

from workbench.soak.processes import below

EVERY_S = 3.0
WARM_UP = 0.3
"""Part of a process's life that is left out."""
WINDOW = 0.2
"""Part of its life over which a reading is taken, after the warm-up and at the end."""
LONG_LIVED_S = 240.0
MEMORY_TOLERANCE = 0.05
FILES_TOLERANCE = 5


class Sample(NamedTuple):
    """One look at a process: its own memory, without what it shares and without files that it maps."""

    at_s: float
    memory: int
    files: int


class Who(NamedTuple):
    """A process; numbers of processes come again, with another start."""

    role: str
    pid: int
    started: float


class Level(NamedTuple):
    """How a process's memory in bytes and its open files moved, from after its warm-up to its end."""

    who: Who
    seconds: float
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


def level(who: Who, samples: Sequence[Sample]) -> Level | None:
    """Return how a process moved, or None for one that did not live long."""
    begin, end = samples[0].at_s, samples[-1].at_s
    life = end - begin
    if life < LONG_LIVED_S:
        return None
    warm = begin + WARM_UP * life
    first = [sample for sample in samples if warm <= sample.at_s <= warm + WINDOW * life]
    last = [sample for sample in samples if sample.at_s >= end - WINDOW * life]
    if not first:
        return None
    memory = median(sample.memory for sample in first), median(sample.memory for sample in last)
    files = median(sample.files for sample in first), median(sample.files for sample in last)
    return Level(who, life, memory, files)


def levels(samples: Mapping[Who, Sequence[Sample]]) -> list[Level]:
    """Return how each long-lived process moved, those that grew most first."""
    found = [level(who, seen) for who, seen in samples.items()]
    return sorted(filter(None, found), key=lambda one: one.growth, reverse=True)


@runtime_checkable
class Root(Protocol):
    """Whoever has a process whose descendants are looked at; another may take its place."""

    @property
    def pid(self) -> int | None:
        """Its number, if it runs."""
        ...


class Meter:
    """Looks at the processes below one every few seconds, while entered.

    Args:
        root: what they descend from.
    """

    def __init__(self, root: Root) -> None:
        self._root = root
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.samples: dict[Who, list[Sample]] = {}

    def __enter__(self) -> "Meter":
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(EVERY_S):
            if (pid := self._root.pid) is not None:
                self._look(pid)

    def _look(self, pid: int) -> None:
        for process, name in below(pid):
            try:
                memory, who = process.memory_info(), Who(name, process.pid, process.create_time())
                sample = Sample(monotonic(), memory.rss - memory.shared, process.num_fds())
            except psutil.Error:
                continue
            self.samples.setdefault(who, []).append(sample)
