"""What a user reads: lines, a bar that moves in place on a terminal, and both across a cluster's log of a job.

A job that was submitted marks its lines in its log, by which `follow` tells them from Ray's.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

COLUMNS = 100
BAR = 12
EVERY_S = 15.0
"""Where no bar can move, a line of progress comes so often."""
MARKED = "SLINGSTONE_SUBMITTED"
"""Variable that a submitter sets: its reader wants marked lines."""
LINE, STANDING = "\x1e", "\x1e\x1f"
"""How a line of ours and one of progress begin in a job's log."""


class Standing(str):
    """A line that says where something stands; the next one takes its place on a terminal.

    Args:
        done: how much of `total` is done.
        total: all that is to do.
        rest: what else there is to say; what does not fit a line is left out.
    """

    done: int
    total: int
    rest: str

    def __new__(cls, done: int, total: int, rest: str) -> "Standing":
        """Return the line as it stands alone."""
        filled = int(min(1.0, done / max(1, total)) * BAR)
        line = f"[{'#' * filled:-<{BAR}}] {done}/{total}  {rest}"
        whole = line[: COLUMNS + 2].rpartition("  ")[0] if len(line) > COLUMNS else line
        made = super().__new__(cls, whole.rstrip())
        made.done, made.total, made.rest = done, total, rest
        return made

    def __reduce__(self) -> Any:
        return Standing, (self.done, self.total, self.rest)


class Terminal:
    """Shows lines at once, whatever the stream is.

    Args:
        stream: where to; None is the process's standard output, whichever that is by then.
        marked: whether `follow` reads the stream.
        clock: seconds.
    """

    def __init__(self, stream: Any = None, marked: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self._given, self._marked, self._clock = stream, marked, clock
        self._bar: Any = None
        self._last = float("-inf")

    @property
    def _stream(self) -> Any:
        return self._given or sys.stdout

    def say(self, line: str) -> None:
        """Show a line; one of progress moves the bar, or is shown now and then."""
        if self._marked:
            print(marked(line), file=self._stream, flush=True)
        elif not isinstance(line, Standing):
            with self._bar_aside():
                print(line, file=self._stream, flush=True)
        elif self._stream.isatty():
            self._move(line)
        elif (now := self._clock()) - self._last >= EVERY_S or line.done >= line.total:
            self._last = now
            print(line, file=self._stream, flush=True)

    def _move(self, line: Standing) -> None:
        from tqdm import tqdm

        if self._bar is None:
            shape = f"{{bar:{BAR}}} {{n_fmt}}/{{total_fmt}}  {{desc}}"
            self._bar = tqdm(total=line.total, file=self._stream, ncols=COLUMNS, bar_format=shape)
        self._bar.total, self._bar.n = line.total, min(line.done, line.total)
        self._bar.set_description_str(line.rest, refresh=True)
        if line.done >= line.total:
            self._bar.close()
            self._bar = None

    def _bar_aside(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._bar is None else self._bar.external_write_mode(file=self._stream)


def marked(line: str) -> str:
    """Return a line as it stands in a job's log."""
    if isinstance(line, Standing):
        return STANDING + json.dumps([line.done, line.total, line.rest])
    return "\n".join(LINE + part for part in line.split("\n"))


def unmarked(line: str) -> str | None:
    """Return the line that a line of a job's log is; None of one that Ray wrote, or a library."""
    if line.startswith(STANDING):
        return Standing(*json.loads(line.removeprefix(STANDING)))
    return line.removeprefix(LINE) if line.startswith(LINE) else None


@cache
def _terminal() -> Terminal:
    return Terminal(marked=MARKED in os.environ)


def say(line: str) -> None:
    """Show a line to the user of this process."""
    _terminal().say(line)


def complain(line: str) -> None:
    """Show what is wrong to the user of this process."""
    print(marked(line) if MARKED in os.environ else line, file=sys.stderr, flush=True)
