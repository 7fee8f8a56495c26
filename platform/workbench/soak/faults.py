"""What happens to a run and when, from outside by signals, limits and damaged bytes; the job is what everyone runs."""

import resource
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

import psutil

from slingstone.checkpoints.manifest import FILE
from workbench.soak.cluster import wait
from workbench.soak.job import REPLICA, TRAINER, Job, signal_all

OUTAGE_S = 20.0
AWAKE_S, ASLEEP_S = 0.01, 0.99
"""Of every second, how long a reward works that is 100 times slower."""
MARGIN = 0.1
"""Part of each stretch of a run that stays free of faults at either end."""


@dataclass(frozen=True)
class Fault:
    """A fault of a kind, once training has come so far."""

    images: int
    kind: str


def worker(job: Job) -> str:
    """SIGKILL the trainer at some moment of a step."""
    return f"killed {_kill_in_a_step(job, TRAINER)} trainer"


def saving(job: Job) -> str:
    """SIGKILL the trainer while it writes a checkpoint."""
    wait(lambda: any(job.checkpoints.glob(".incoming-*")), "a checkpoint that is being written", poll_s=0.001)
    time.sleep(job.chance.uniform(0, 0.02))
    killed = job.kill(TRAINER)
    left = [path.name for path in job.checkpoints.glob(".incoming-*")]
    return f"killed {killed} trainer; it left {', '.join(left) or 'nothing unfinished'}"


def preemption(job: Job) -> str:
    """SIGTERM the job, which saves and ends; the same command is submitted again."""
    job.cluster.jobs.stop_job(job.id)
    job.stopped = True
    return "stopped the job"


def replica(job: Job) -> str:
    """SIGKILL a reward's replica."""
    return f"killed {_kill_in_a_step(job, REPLICA)} replica"


def outage(job: Job) -> str:
    """SIGKILL every replica that there is or comes, for 20 seconds."""
    killed, over = 0, time.monotonic() + OUTAGE_S
    while time.monotonic() < over:
        killed += job.kill(REPLICA)
        time.sleep(0.1)
    return f"killed {killed} replicas in {OUTAGE_S:g} s"


def slow(job: Job) -> str:
    """Let the replicas work a hundredth of the time, for 20 seconds."""
    wait(lambda: bool(job.processes(REPLICA)), "a replica")
    found, over = job.processes(REPLICA), time.monotonic() + OUTAGE_S
    try:
        while time.monotonic() < over:
            signal_all(found, signal.SIGSTOP)
            time.sleep(ASLEEP_S)
            signal_all(found, signal.SIGCONT)
            time.sleep(AWAKE_S)
    finally:
        signal_all(found, signal.SIGCONT)
    return f"slowed {len(found)} replica down a hundred times for {OUTAGE_S:g} s"


def full_disk(job: Job) -> str:
    """Let no file of the trainer grow, as on a full disk, until a checkpoint cannot be saved."""
    before = job.log.count("cannot be saved")
    wait(lambda: bool(job.published() and job.processes(TRAINER)), "a trainer and a checkpoint")
    trainer = job.processes(TRAINER)[0]
    newest = job.checkpoints / job.published()[-1]
    largest = max(path.stat().st_size for path in newest.rglob("*"))
    # The kernel's own refusal; the journal and pictures, which are smaller, are written all the same.
    limits = trainer.rlimit(resource.RLIMIT_FSIZE)
    trainer.rlimit(resource.RLIMIT_FSIZE, (largest // 2, resource.RLIM_INFINITY))
    try:
        wait(lambda: job.log.count("cannot be saved") > before, "a save that fails", poll_s=1.0)
    finally:
        trainer.rlimit(resource.RLIMIT_FSIZE, limits)
    return "a checkpoint could not be saved"


def damage(job: Job) -> str:
    """Flip a bit of the newest checkpoint and SIGKILL the trainer, which would continue from it."""
    before = job.published()
    wait(lambda: job.published()[-1:] > before[-1:], "a new checkpoint")
    newest = job.checkpoints / job.published()[-1]
    path = job.chance.choice(sorted(path for path in newest.rglob("*") if path.is_file() and path.name != FILE))
    data = bytearray(path.read_bytes())
    data[job.chance.randrange(len(data))] ^= 1 << job.chance.randrange(8)
    path.write_bytes(data)
    job.kill(TRAINER)
    aside = job.checkpoints / f"damaged-{newest.name}"
    wait(aside.is_dir, aside.name)
    return f"{path.relative_to(job.checkpoints)} was set aside"


def mlflow(job: Job) -> str:
    """Kill the MLflow server, and start it again after 20 seconds."""
    job.cluster.mlflow.kill()
    time.sleep(OUTAGE_S)
    job.cluster.mlflow.start()
    return f"no MLflow for {OUTAGE_S:g} s"


def head(job: Job) -> str:
    """SIGKILL the head, start another, and submit the job again once nothing of the old one runs."""
    _, alive = psutil.wait_procs(job.cluster.kill_head(), timeout=120)
    if alive:
        raise RuntimeError(f"outlived the head: {', '.join(process.name() for process in alive)}")
    job.cluster.start_head()
    job.submit()
    return "killed the head, and submitted the job to another"


FAULTS: Mapping[str, Callable[[Job], str]] = {
    fault.__name__: fault
    for fault in (worker, saving, preemption, replica, outage, slow, full_disk, damage, mlflow, head)
}
"""By kind: makes the fault, and returns what was done."""
KINDS = tuple(kind for kind in FAULTS if kind != "head")
"""What happens in a soak. Each comes as often as the others, give or take one."""


def plan(seed: int, num_images: int, count: int, kinds: Sequence[str] = KINDS) -> list[Fault]:
    """Return faults at random positions, one in each of `count` equal stretches of the run, in a random order.

    They are the same for the same seed.
    """
    chance = Random(seed)
    order: list[str] = []
    while len(order) < count:
        order += chance.sample(kinds, len(kinds))
    stretch = num_images / max(count, 1)
    positions = [int((i + chance.uniform(MARGIN, 1 - MARGIN)) * stretch) for i in range(count)]
    return [Fault(images, kind) for images, kind in zip(positions, order, strict=False)]


def _kill_in_a_step(job: Job, role: str) -> int:
    wait(lambda: bool(job.processes(role)), f"a process {role}")
    time.sleep(job.chance.uniform(0, 0.5))
    return job.kill(role)
