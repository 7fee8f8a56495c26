"""A run that a job works on, as seen from outside: its processes, its files, its position."""

import json
import os
import signal
from contextlib import suppress
from pathlib import Path
from random import Random

import psutil
from ray.job_submission import JobStatus

from slingstone.checkpoints.run_directory import checkpoints
from slingstone.checkpoints.store import open_store
from slingstone.config import Experiment
from slingstone.config.paths import ROOT
from workbench.soak.cluster import Cluster, wait
from workbench.soak.processes import below

TAIL_BYTES = 8192
TRAINER, REPLICA = "RayTrainWorker", "ServeReplica"


class Job:
    """A run and the job that works on it; as a context, it submits the job, and stops one that is left in the middle.

    `chance` decides at which moment of a step faults happen.
    """

    def __init__(self, experiment: Experiment, cluster: Cluster, chance: Random) -> None:
        self.experiment = experiment
        self.cluster = cluster
        self.chance = chance
        self.directory = Path(experiment.storage) / "align" / experiment.name
        self.checkpoints = Path(checkpoints(experiment))
        self.id = ""
        self.stopped = False
        """Whether the job was told to end, so that it is to be submitted again."""

    def __enter__(self) -> "Job":
        self.submit()
        return self

    def __exit__(self, *raised: object) -> None:
        if any(raised) and not self.status.is_terminal():
            self.cluster.jobs.stop_job(self.id)
            wait(lambda: self.status.is_terminal(), "the end of a job that was stopped")

    def submit(self) -> None:
        """Submit the job; the same command each time."""
        config = Path(self.experiment.storage) / f"{self.experiment.name}.yaml"
        self.id, self.stopped = self.cluster.submit(str(ROOT / "jobs" / "align.py"), str(config)), False

    @property
    def status(self) -> JobStatus:
        """How far the job is."""
        return self.cluster.jobs.get_job_status(self.id)

    @property
    def log(self) -> str:
        """What the job printed so far."""
        return self.cluster.jobs.get_job_logs(self.id)

    def processes(self, role: str) -> list[psutil.Process]:
        """Return those of the cluster whose role begins so."""
        root = self.cluster.pid
        return [process for process, name in below(root) if name.startswith(role)] if root is not None else []

    def kill(self, role: str) -> int:
        """SIGKILL all processes of a role; return how many there were."""
        found = self.processes(role)
        signal_all(found, signal.SIGKILL)
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


def signal_all(processes: list[psutil.Process], number: int) -> None:
    """Send a signal to processes, of which some may have ended."""
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)
