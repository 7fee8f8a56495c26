"""Processes of this session's own cluster, children of this one, that serve rewards."""

import time
from collections.abc import Callable

import psutil


def pids(reward: str) -> list[int]:
    """Return those of a reward's replicas."""
    title = f"ray::ServeReplica:reward-{reward}:"
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if " ".join(process.cmdline()).startswith(title):
                found.append(process.pid)
        except psutil.Error:  # ended meanwhile
            continue
    return found


def wait_until(true: Callable[[], bool], timeout_s: float) -> None:
    """Return as soon as something is true; fail if that takes too long."""
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s"
        time.sleep(0.2)
