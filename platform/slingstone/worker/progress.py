"""What a user sees while a run goes on: where it stands, and a table of its evaluations."""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from slingstone.terminal import COLUMNS, Standing

EVERY_S = 4.0
WINDOW_S = 60.0
"""Speed and time left are those of the last minute."""
NARROWEST = 6
COUNT = 9
"""Width of the column of images."""


class Progress:
    """Says where training stands: images of all, speed, time left, rewards, divergence; and what evaluations find.

    Args:
        say: shows a line to the user.
        num_images: length of the run.
        held_out: names of the rewards that are not trained on; the table shows them in parentheses.
        clock: seconds.
    """

    def __init__(
        self,
        say: Callable[[str], None],
        num_images: int,
        held_out: Sequence[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.say = say
        self._num_images, self._held_out, self._clock = num_images, held_out, clock
        self._reached: deque[tuple[float, int]] = deque()
        self._last_line = float("-inf")
        self._columns: list[str] = []

    def step(self, metrics: Mapping[str, float], images: int, num_images: int) -> None:
        """Take note of a step of `num_images` images that ended at `images`; say so if the last line is old."""
        now = self._clock()
        if not self._reached or images <= self._reached[-1][1]:  # the first step, or a return to an earlier one
            self._reached = deque([(now - metrics["seconds/step"], images - num_images)])
        self._reached.append((now, images))
        while now - self._reached[1][0] >= WINDOW_S:
            self._reached.popleft()
        if images >= self._num_images or now - self._last_line >= EVERY_S:
            self._last_line = now
            self.say(Standing(images, self._num_images, self._rest(metrics, images)))

    def found(self, title: str, summary: Mapping[str, Any]) -> None:
        """Say what an evaluation found, as a row of a table; the first one brings the header."""
        rewards = {self._reward(name): value for name, value in summary["rewards"].items()}
        others = {name: summary[name] for name in ("utility", "caption_accuracy", "diversity") if name in summary}
        shown = {name.replace("caption_", ""): value for name, value in (rewards | others).items()}
        room = (COLUMNS - COUNT) // max(1, len(shown)) - 2
        widths = [max(NARROWEST, min(len(name), room)) for name in shown]
        if list(shown) != self._columns:
            self._columns = list(shown)
            if any(self._reward(name) != name for name in summary["rewards"]):
                self.say("evaluations on held-out prompts; rewards in parentheses are not trained on")
            else:
                self.say("evaluations on held-out prompts")
            self.say(_row("images", [name[:width] for name, width in zip(shown, widths, strict=True)], widths))
        self.say(_row(title, [_number(value) for value in shown.values()], widths))

    def _reward(self, name: str) -> str:
        return f"({name})" if name in self._held_out else name

    def _rest(self, metrics: Mapping[str, float], images: int) -> str:
        (since, before), (now, _) = self._reached[0], self._reached[-1]
        speed = (images - before) / max(now - since, 1e-9)
        left_s = max(0, self._num_images - images) / max(speed, 1e-9)
        parts = [f"{speed:.3g}/s", f"ETA {duration(left_s)}"]
        parts += [f"{self._reward(name[7:])} {value:.3g}" for name, value in metrics.items() if name[:7] == "reward/"]
        if "divergence/distance" in metrics:
            parts.append(f"divergence {metrics['divergence/distance']:.3g}")
        return "  ".join(parts)


def _row(title: str, cells: Sequence[str], widths: Sequence[int]) -> str:
    texts = [f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)]
    return "  ".join([f"{title:<{COUNT}}", *texts])[:COLUMNS]


def _number(value: float) -> str:
    """Return a number of at most six letters: a table's columns may be that narrow."""
    for digits in (4, 3, 2, 1, 0):
        if len(text := f"{value:.{digits}f}") <= NARROWEST:
            return text
    return f"{value:.0e}"


def duration(seconds: float) -> str:
    """Return seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
