"""SIGTERM as a wish: the run saves at the end of its step, and ends."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def told_to_stop(say: Callable[[str], None]) -> Iterator[threading.Event]:
    """Yield an event that the first SIGTERM sets; a second one ends the process at once.

    Python handles signals in its main thread only; in another one, such as a sweep's, the event stays unset.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def handle(number: int, _: Any) -> None:
        if asked.is_set():
            raise SystemExit(128 + number)
        asked.set()
        say("told to stop: saving at the end of this step")

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)
