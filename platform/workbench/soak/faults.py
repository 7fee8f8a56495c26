"""What happens to a run, from outside: signals, limits and damaged bytes; the job itself is what everyone runs."""

import os
import resource
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

import psutil

from slingstone.checkpoints.manifest import FILE
from workbench.soak.scene import REPLICA, TRAINER, Scene

OUTAGE_S = 20.0
AWAKE_S, ASLEEP_S = 0.01, 0.99
"""Of every second, how long a reward works that is 100 times slower."""


def worker(scene: Scene) -> str:
    """SIGKILL the trainer at some moment of a step."""
    scene.wait(lambda: bool(scene.processes(TRAINER)), "a trainer")
    time.sleep(scene.chance.uniform(0, 0.5))
    return f"killed {scene.kill(TRAINER)} trainer"


def saving(scene: Scene) -> str:
    """SIGKILL the trainer while it writes a checkpoint."""
    scene.wait(lambda: any(scene.checkpoints.glob(".incoming-*")), "a checkpoint that is being written", poll_s=0.001)
    time.sleep(scene.chance.uniform(0, 0.02))
    killed = scene.kill(TRAINER)
    left = [path.name for path in scene.checkpoints.glob(".incoming-*")]
    return f"killed {killed} trainer; it left {', '.join(left) or 'nothing unfinished'}"


def preemption(scene: Scene) -> str:
    """SIGTERM the job, which saves and ends; the same command is submitted again."""
    scene.ground.stop_job(scene.job)
    scene.again = True
    return "stopped the job"


def replica(scene: Scene) -> str:
    """SIGKILL a reward's replica."""
    scene.wait(lambda: bool(scene.processes(REPLICA)), "a replica")
    time.sleep(scene.chance.uniform(0, 0.5))
    return f"killed {scene.kill(REPLICA)} replica"


def outage(scene: Scene) -> str:
    """SIGKILL every replica that there is or comes, for 20 seconds."""
    killed, over = 0, time.monotonic() + OUTAGE_S
    while time.monotonic() < over:
        killed += scene.kill(REPLICA)
        time.sleep(0.1)
    return f"killed {killed} replicas in {OUTAGE_S:g} s"


def slow(scene: Scene) -> str:
    """Let the replicas work a hundredth of the time, for 20 seconds."""
    scene.wait(lambda: bool(scene.processes(REPLICA)), "a replica")
    found, over = scene.processes(REPLICA), time.monotonic() + OUTAGE_S
    try:
        while time.monotonic() < over:
            _signal(found, signal.SIGSTOP)
            time.sleep(ASLEEP_S)
            _signal(found, signal.SIGCONT)
            time.sleep(AWAKE_S)
    finally:
        _signal(found, signal.SIGCONT)
    return f"slowed {len(found)} replica down a hundred times for {OUTAGE_S:g} s"


def full_disk(scene: Scene) -> str:
    """Let no file of the trainer grow, as on a full disk, until a checkpoint cannot be saved."""
    told = scene.ground.said(scene.job).count("cannot be saved")
    scene.wait(lambda: bool(scene.published() and scene.processes(TRAINER)), "a trainer and a checkpoint")
    trainer = scene.processes(TRAINER)[0]
    newest = scene.checkpoints / scene.published()[-1]
    largest = max(path.stat().st_size for path in newest.rglob("*"))
    # The kernel's own refusal; the journal and pictures, which are smaller, are written all the same.
    before = trainer.rlimit(resource.RLIMIT_FSIZE)
    trainer.rlimit(resource.RLIMIT_FSIZE, (largest // 2, resource.RLIM_INFINITY))
    try:
        scene.wait(
            lambda: scene.ground.said(scene.job).count("cannot be saved") > told, "a save that fails", poll_s=1.0
        )
    finally:
        trainer.rlimit(resource.RLIMIT_FSIZE, before)
    return "a checkpoint could not be saved"


def damage(scene: Scene) -> str:
    """Flip a bit of the newest checkpoint and SIGKILL the trainer, which would continue from it."""
    before = scene.published()
    scene.wait(lambda: scene.published()[-1:] > before[-1:], "a new checkpoint")
    newest = scene.checkpoints / scene.published()[-1]
    files = sorted(path for path in newest.rglob("*") if path.is_file() and path.name != FILE)
    path = scene.chance.choice(files)
    data = bytearray(path.read_bytes())
    data[scene.chance.randrange(len(data))] ^= 1 << scene.chance.randrange(8)
    path.write_bytes(data)
    scene.kill(TRAINER)
    aside = scene.checkpoints / f"damaged-{newest.name}"
    scene.wait(aside.is_dir, f"{aside.name}")
    return f"{path.relative_to(scene.checkpoints)} was set aside"


def mlflow(scene: Scene) -> str:
    """Kill the MLflow server, and start it again after 20 seconds."""
    scene.ground.tracking.kill()
    time.sleep(OUTAGE_S)
    scene.ground.tracking.start()
    return f"no MLflow for {OUTAGE_S:g} s"


def head(scene: Scene) -> str:
    """SIGKILL the head, start another, and submit the job again once nothing of the old one runs."""
    left = scene.ground.kill_head()
    _, alive = psutil.wait_procs(left, timeout=120)
    if alive:
        raise RuntimeError(f"outlived the head: {', '.join(process.name() for process in alive)}")
    scene.ground.start_head()
    scene.submit()
    return "killed the head, and submitted the job to another"


FAULTS: Mapping[str, Callable[[Scene], str]] = {
    "worker": worker,
    "saving": saving,
    "preemption": preemption,
    "replica": replica,
    "outage": outage,
    "slow": slow,
    "full_disk": full_disk,
    "damage": damage,
    "mlflow": mlflow,
    "head": head,
}
"""By kind: makes the fault, and returns what was done."""


def _signal(processes: list[psutil.Process], number: int) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)
