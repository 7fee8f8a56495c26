"""A run under way, as seen from outside: its processes, its files, its position."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import psutil

from slingstone.checkpoints.run_directory import checkpoints
from slingstone.checkpoints.store import open_store
from slingstone.config import Experiment
from slingstone.config.paths import ROOT
from workbench.soak.ground import Ground
from workbench.soak.processes import below

TAIL_BYTES = 8192
TRAINER, REPLICA = "RayTrainWorker", "ServeReplica"


class Scene:
    """One run that a job works on; as a context, it submits the job, and stops one that is left in the middle.

    Args:
        experiment: what is run.
        ground: where.
        chance: decides the moment within a step.
    """

    def __init__(self, experiment: Experiment, ground: Ground, chance: Random) -> None:
        self.run = experiment
        self.ground = ground
        self.chance = chance
        self.directory = Path(experiment.storage) / "align" / experiment.name
        self.checkpoints = Path(checkpoints(experiment))
        self.job = ""
        self.again = False
        """Whether the job was made to end, so that it is to be submitted again."""

    def __enter__(self) -> "Scene":
        self.submit()
        return self

    def __exit__(self, *raised: object) -> None:
        if any(raised) and not self.ground.ended(self.job):
            self.ground.stop_job(self.job)
            self.wait(lambda: self.ground.ended(self.job), "the end of a job that was stopped")

    def submit(self) -> None:
        """Submit the job; the same command each time."""
        config = Path(self.run.storage) / f"{self.run.name}.yaml"
        self.job, self.again = self.ground.submit(str(ROOT / "jobs" / "align.py"), str(config)), False

    def processes(self, role: str) -> list[psutil.Process]:
        """Return those of the cluster whose role begins so."""
        root = self.ground.pid
        return [process for process, name in below(root) if name.startswith(role)] if root is not None else []

    def kill(self, role: str) -> int:
        """SIGKILL all processes of a role; return how many there were."""
        found = self.processes(role)
        for process in found:
            try:
                os.kill(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        return len(found)

    def position(self) -> int:
        """Return the images that were reached, ever: the last of the run's journal."""
        reached = [0]
        for journal in self.directory.glob("metrics-*.jsonl"):
            with journal.open("rb") as file:
                file.seek(max(journal.stat().st_size - TAIL_BYTES, 0))
                lines = file.read().split(b"\n")[:-1]  # the last one may be half written
            if lines and lines[-1].startswith(b"{"):
                reached.append(json.loads(lines[-1])["images"])
        return max(reached)

    def published(self) -> list[str]:
        """Return the names of the run's checkpoints."""
        return open_store(str(self.checkpoints)).names()

    def wait(self, true: Callable[[], bool], what: str, timeout_s: float = 300.0, poll_s: float = 0.1) -> None:
        """Return as soon as something is true.

        Raises:
            TimeoutError: it took too long; names it.
        """
        deadline = time.monotonic() + timeout_s
        while not true():
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {timeout_s:g} s: {what}")
            time.sleep(poll_s)
