"""Where the time of a step goes, without making the device wait."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Stopwatch:
    """Seconds of the stages of a step: by the GPU's own clock, or by the host's where the networks run on a CPU.

    A GPU is never waited for: what it noted in one step is read at the end of the next. Stages follow each other; one
    that occurs several times in a step is summed. A profiler shows them by name.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._spans: list[tuple[str, Any, Any]] = []
        self._before: list[tuple[str, Any, Any]] = []

    def begin(self) -> None:
        """Begin a step; what an interrupted one has left is dropped."""
        self._spans = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the block under a name."""
        with torch.profiler.record_function(name):
            start = self._mark()
            yield
            self._spans.append((name, start, self._mark()))

    def end(self) -> dict[str, float]:
        """Return the seconds of each stage: of this step, or on a GPU of the one before, so nothing at first."""
        ended = self._spans
        if self._on_gpu:
            ended, self._before = self._before, ended
        seconds: Counter[str] = Counter()
        for name, start, stop in ended:
            seconds[name] += start.elapsed_time(stop) / 1000 if self._on_gpu else stop - start
        return dict(seconds)

    def _mark(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
