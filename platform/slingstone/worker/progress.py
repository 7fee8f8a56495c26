"""What a user sees while a run goes on: a line every few seconds, and a table at the end."""

import time
from collections.abc import Callable, Mapping
from typing import Any

BAR = 24
EVERY_S = 4.0


class Progress:
    """Says where training stands: images of all, speed, rewards, divergence, the last evaluation, time left."""

    def __init__(
        self, say: Callable[[str], None], num_images: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.say = say
        self._num_images = num_images
        self._clock = clock
        self._found: dict[str, float] = {}
        self._training_s = 0.0
        self._trained = 0
        self._last_line = float("-inf")

    def step(self, metrics: Mapping[str, float], images: int, num_images: int) -> None:
        """Take note of a step of `num_images` images that ended at `images`; say so if the last line is old."""
        self._training_s += metrics["seconds/step"]
        self._trained += num_images
        last = images >= self._num_images
        if last or self._clock() - self._last_line >= EVERY_S:
            self._last_line = self._clock()
            self.say(self._line(metrics, images))

    def found(self, title: str, summary: Mapping[str, Any]) -> None:
        """Take note of an evaluation, and say it."""
        self._found = {name: summary[name] for name in ("utility", "caption_accuracy") if name in summary}
        shown = {**summary["rewards"], **self._found, "diversity": summary["diversity"]}
        self.say(f"{title}: " + "  ".join(f"{name} {value:.4g}" for name, value in shown.items()))

    def _line(self, metrics: Mapping[str, float], images: int) -> str:
        share = min(1.0, images / self._num_images)
        speed = self._trained / max(self._training_s, 1e-9)
        left_s = max(0, self._num_images - images) / max(speed, 1e-9)
        bar = "#" * int(share * BAR)
        parts = [f"[{bar:-<{BAR}}] {images}/{self._num_images} images", f"{speed:.1f} images/s"]
        parts += [f"{name[7:]} {value:.4g}" for name, value in metrics.items() if name.startswith("reward/")]
        if "divergence/distance" in metrics:
            parts.append(f"divergence {metrics['divergence/distance']:.4g}")
        parts += [f"{name.replace('caption_', '')} {value:.3f}" for name, value in self._found.items()]
        return "  ".join([*parts, f"ETA {duration(left_s)}"])


def duration(seconds: float) -> str:
    """Return seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
