"""What the workers of the fault tests run: the job's own loop, in a process to which something happens once."""

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from slingstone.checkpoints import saving
from slingstone.step.trainer import Trainer


def once(directory: Path, name: str) -> bool:
    """Return whether this is the first time, over all restarts."""
    try:
        (directory / f"fault-{name}").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_twice(config: Mapping[str, Any]) -> dict[str, Any]:
    """Die between the two updates of a step, and later while a checkpoint is being written."""
    directory = Path(config["assignment"].directory)

    def update(self: Trainer) -> Any:
        if self.images == 16 and once(directory, "mid-step"):
            die()
        return _update_generator(self)

    def write(files: Mapping[str, Any], place: Path) -> Any:
        if place.name.endswith("24") and once(directory, "writing"):
            (place / "rank_0.pt").write_bytes(b"PK")
            die()
        return _write(files, place)

    return _with(update, write, config)


def orphaned(config: Mapping[str, Any]) -> dict[str, Any]:
    """Kill the run's controller in a step, and its cleaner, as a node's memory monitor would."""
    import psutil

    directory = Path(config["assignment"].directory)

    def update(self: Trainer) -> Any:
        if self.images == 16 and once(directory, "orphaned"):
            siblings = psutil.Process(os.getppid()).children()
            for process in siblings:
                if process.cmdline()[0].startswith(("ray::PlacementGroupCleaner", "ray::TrainController")):
                    process.kill()
        return _update_generator(self)

    return _with(update, _write, config)


def slow_steps(config: Mapping[str, Any]) -> dict[str, Any]:
    """Take a second a step, so that a signal finds the run in the middle."""
    import time

    def update(self: Trainer) -> Any:
        time.sleep(1.0)
        return _update_generator(self)

    return _with(update, _write, config)


def exploding(config: Mapping[str, Any]) -> dict[str, Any]:
    """Lose the weights in one step, as an overflow would."""
    import torch

    directory = Path(config["assignment"].directory)

    def update(self: Trainer) -> Any:
        if self.images == 16 and once(directory, "explosion"):
            with torch.no_grad():
                for weight in self.generator.module.parameters():
                    weight.fill_(float("inf"))
            raise FloatingPointError("gradient norm of the generator is inf")
        return _update_generator(self)

    return _with(update, _write, config)


_update_generator, _write = Trainer._update_generator, saving.write


def _with(update: Callable[..., Any], write: Callable[..., Any], config: Mapping[str, Any]) -> dict[str, Any]:
    from slingstone.worker.loop import align

    Trainer._update_generator, saving.write = update, write
    return align(dict(config))
