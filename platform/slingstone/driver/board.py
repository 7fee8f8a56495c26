"""Between the workers and the driver: lines for the user, and the request to stop."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


class Board:
    """An actor between rank 0 and the driver, since worker logs reach the driver with prefixes, out of order."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._stopping = False
        self._reservation: PlacementGroup | None = None

    def set_reservation(self, group: PlacementGroup) -> None:
        """Take note of what the workers reserve."""
        self._reservation = group

    def reservation(self) -> PlacementGroup | None:
        """Return what the workers reserve."""
        return self._reservation

    def stop(self) -> None:
        """Ask the workers to stop."""
        self._stopping = True

    def stopping(self) -> bool:
        """Tell whether the workers are asked to stop."""
        return self._stopping

    def say(self, line: str) -> None:
        """Take a line for the user."""
        self._lines.append(line)

    def new_lines(self) -> list[str]:
        """Return the lines that came since the last call."""
        lines, self._lines = self._lines, []
        return lines


@contextmanager
def open_board(say: Callable[[str], None], stop: threading.Event | None = None) -> Iterator[Any]:
    """Yield the handle of a board whose lines `say` shows in this process; `stop` asks its workers to stop."""
    # Beside this driver, so that it is there for the workers of the next attempt when their nodes are lost.
    here: Any = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board: Any = ray.remote(num_cpus=0, scheduling_strategy=here)(Board).remote()
    over = threading.Event()

    def show() -> None:
        while True:
            last = over.wait(0.5)
            if stop is not None and stop.is_set():
                board.stop.remote()
            for line in ray.get(board.new_lines.remote()):
                say(line)
            if last:
                return

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield board
    finally:
        over.set()
        thread.join(timeout=10)
        ray.kill(board)
