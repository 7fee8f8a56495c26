"""One driver a run: a lease in the run's directory says who holds it, and by its heartbeat that the holder lives."""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
from filelock import FileLock

from slingstone import atomic

FILE = "lease.json"
BEAT_S = 5.0
DEAD_AFTER_S = 60.0
"""Age of a heartbeat at which its owner is taken for dead; one of this machine is asked for directly."""
POLL_S = 0.5
CLOCK_STEP_S = 5.0
"""What a correction of the clock may move the start of a process by."""


@contextmanager
def held(directory: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the lease of a run's directory; a dead owner's is taken over, which may have to be waited for.

    Raises:
        ValueError: a living one holds it; names it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    file, token = directory / FILE, uuid4().hex
    _acquire(file, {"token": token, "since": datetime.now(UTC).isoformat(timespec="seconds"), **_owner()}, say)
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT_S):
            with suppress(OSError):  # a shared disk that is away for a moment
                if (atomic.read_json(file) or {}).get("token") == token:
                    os.utime(file)

    thread = threading.Thread(target=beat, daemon=True, name="lease")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        with _one_at_a_time(file):
            if (atomic.read_json(file) or {}).get("token") == token:
                file.unlink(missing_ok=True)


def holder(directory: Path) -> str | None:
    """Return who holds the lease of a run's directory, in words; None if nobody living does."""
    owner = process_of(directory)
    return None if owner is None else _named(owner)


def process_of(directory: Path) -> dict[str, Any] | None:
    """Return the living process that holds the lease: `host`, `pid`, and whether it is `here`, on this machine."""
    file = directory / FILE
    if (owner := atomic.read_json(file)) is None or not _lives(file, owner):
        return None
    return owner | {"here": _here(owner)}


def _acquire(file: Path, own: dict[str, Any], say: Callable[[str], None]) -> None:
    first: float | None = None
    while True:
        with _one_at_a_time(file):
            other = atomic.read_json(file)
            if other is None or not _lives(file, other):
                if other is not None:
                    say(f"taking over from {_named(other)}, which is dead")
                atomic.write_text(file, json.dumps(own))
                return
            beat = file.stat().st_mtime
        if _here(other) or (first is not None and beat != first):
            raise ValueError(
                f"{file.parent}: this run is at work already, by {_named(other)}; wait for its end, stop it, or give"
                " this run another name"
            )
        if first is None:
            first = beat
            say(f"{_named(other)} holds {file.parent}: waiting for its next heartbeat")
        time.sleep(POLL_S)


def _lives(file: Path, owner: dict[str, Any]) -> bool:
    if _here(owner):
        with suppress(psutil.Error):
            process = psutil.Process(owner["pid"])
            same = abs(process.create_time() - owner["started"]) < CLOCK_STEP_S
            return same and process.status() != psutil.STATUS_ZOMBIE
        return False
    # By the disk's own clock, which the two hosts share.
    probe = file.with_name(f"{file.name}.{uuid4().hex}")
    probe.touch()
    now = probe.stat().st_mtime
    probe.unlink()
    return now - file.stat().st_mtime < DEAD_AFTER_S


def _here(owner: dict[str, Any]) -> bool:
    return owner["processes"] == _owner()["processes"]


def _owner() -> dict[str, Any]:
    """Return what tells this process from all others; `processes` names the set in which its number is its own."""
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    processes = f"{boot.read_text().strip()} {namespace.readlink()}" if boot.is_file() else socket.gethostname()
    process = psutil.Process()
    return {
        "host": socket.gethostname(),
        "pid": process.pid,
        "started": process.create_time(),
        "processes": processes,
    }


def _named(owner: dict[str, Any]) -> str:
    return f"process {owner['pid']} on {owner['host']} since {owner['since']}"


def _one_at_a_time(file: Path) -> FileLock:
    return FileLock(file.with_suffix(".lock"))
