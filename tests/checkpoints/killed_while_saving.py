"""Saves a second checkpoint and is killed meanwhile, at one moment after another; run as a program of its own.

It forks before torch has threads or a process group: neither survives a fork.
"""

import os
import signal
import sys
from pathlib import Path

import torch.distributed as dist

from slingstone import atomic
from slingstone.checkpoints import saving, store
from tests.small_run import small

MOMENTS = ("first file", "manifest", "rename", "deletion")


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def half_a_file(files: dict[str, object], directory: Path) -> None:
    (directory / "rank_0.pt").write_bytes(b"PK")
    die()


def save_and_die(directory: Path, moment: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{directory}.rendezvous", rank=0, world_size=1)
    run = small(directory, ["training.keep_checkpoints=1"])
    run.steps(2)
    run.save()
    run.steps(1)
    if moment == "first file":
        saving.write = half_a_file
    elif moment == "manifest":
        atomic._sync = die
    elif moment == "rename":
        Path.rename = die
    else:
        store.DirectoryStore.delete = die
    run.save()


if __name__ == "__main__":
    root = Path(sys.argv[1])
    for place in MOMENTS:
        child = os.fork()
        if child == 0:
            save_and_die(root / place, place)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL, place
