"""The processes of a cluster by what they are for, seen from outside."""

import re
from collections.abc import Iterator

import psutil

RAY_TITLE = re.compile(r"ray::([\w:-]+)")
PROGRAMS = ("gcs_server", "raylet", "log_monitor", "dashboard", "monitor")
"""Ray's own, by a part of the path of their program."""
DAEMONS = {*PROGRAMS, "DashboardAgent", "RuntimeEnvAgent"}
"""Roles of what a cluster runs without a job: a run can neither free their memory nor close their files."""


def role(command: list[str]) -> str | None:
    """Return what a process is for, or None for one that waits for work or is not of a cluster."""
    if not command:
        return None
    if titled := RAY_TITLE.match(command[0]):
        return None if titled[1] == "IDLE" else titled[1].strip(":")
    if any(part.endswith("jobs/align.py") for part in command[:3]):
        return "driver"
    return next((name for name in PROGRAMS if any(name in part.rpartition("/")[2] for part in command[:3])), None)


def below(root: int) -> Iterator[tuple[psutil.Process, str]]:
    """Yield the processes that descend from one, with their roles."""
    try:
        children = psutil.Process(root).children(recursive=True)
    except psutil.Error:
        return
    for process in children:
        try:
            name = role(process.cmdline())
        except psutil.Error:  # ended meanwhile
            continue
        if name is not None:
            yield process, name
