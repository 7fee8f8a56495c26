"""Between the workers and the driver: lines for the user, and the wish to stop."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


class Board:
    """An actor between rank 0 and the driver: lines, what the workers hold, and the driver's wish to stop.

    Worker logs would reach the driver with prefixes, out of order.
    """

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._stopping = False
        self._group: PlacementGroup | None = None

    def hold(self, group: PlacementGroup) -> None:
        """Take note of what the workers reserve."""
        self._group = group

    def held(self) -> PlacementGroup | None:
        """Return what the workers reserve."""
        return self._group

    def stop(self) -> None:
        """Take down the wish to stop."""
        self._stopping = True

    def stopping(self) -> bool:
        """Tell whether the run is to stop."""
        return self._stopping

    def say(self, line: str) -> None:
        """Take a line for the user."""
        self._lines.append(line)

    def take(self) -> list[str]:
        """Return the lines that came since the last call."""
        taken, self._lines = self._lines, []
        return taken


@contextmanager
def open_board(say: Callable[[str], None], stop: threading.Event | None = None) -> Iterator[Any]:
    """Yield the handle of a board whose lines `say` shows in this process, and that passes on the wish to stop."""
    # Beside this driver, so that it is there for the workers of the next attempt when their nodes are lost.
    here: Any = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    shown: Any = ray.remote(num_cpus=0, scheduling_strategy=here)(Board).remote()
    over = threading.Event()

    def show() -> None:
        while True:
            last = over.wait(0.5)
            if stop is not None and stop.is_set():
                shown.stop.remote()
            for line in ray.get(shown.take.remote()):
                say(line)
            if last:
                return

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield shown
    finally:
        over.set()
        thread.join(timeout=10)
        ray.kill(shown)
