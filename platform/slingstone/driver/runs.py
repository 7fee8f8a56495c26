"""The runs under a storage: their state, where they are at work, and how to stop one."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from slingstone import atomic, tracking
from slingstone.driver import run_lease, submission

LEFT_BY_A_JOB = ("config.yaml", "sweep.yaml", "summary.json", run_lease.FILE)
"""Files by which a directory is one of a run."""
POLL_S = 0.3


@dataclass(frozen=True)
class Run:
    """A run, and how it is.

    Attributes:
        called: `JOB/NAME`.
        state: `running`, `complete`, or `stopped` before its end.
        where: who runs it, or where its results lie.
    """

    called: str
    state: str
    where: str


def runs(storage: Path) -> Iterator[Run]:
    """Yield the runs of a storage, by the files that they left: those at work by their leases."""
    for directory in sorted(storage.glob("*/*")):
        if not any((directory / name).is_file() for name in LEFT_BY_A_JOB):
            continue
        holder = run_lease.holder(directory)
        summary = atomic.read_json(directory / "summary.json")
        state = "running" if holder else "stopped" if summary is None else "complete"
        yield Run(f"{directory.parent.name}/{directory.name}", state, holder or str(directory))


def all_runs(storage: Path) -> list[Run]:
    """Return the runs of a storage and the jobs of the cluster that can be reached, those at work first."""
    found = {run.called: run for run in runs(storage)}
    if submission.reachable():
        client = submission.reach(print, start=False)
        for job in submission.alive(client):
            called, state = submission.title(job), "waiting" if job.status == "PENDING" else "running"
            found[called] = Run(called, state, f"a job of {client.get_address()}")
    return sorted(found.values(), key=lambda run: (run.state not in ("running", "waiting"), run.called))


def follow(name: str, storage: Path, say: Callable[[str], None], verbose: bool) -> None:
    """Show what a job says, the newest of this name.

    Raises:
        ValueError: no job is called so.
        SystemExit: it failed, was stopped, or is no longer followed.
    """
    client = submission.reach(say, start=False) if submission.reachable() else None
    job = submission.find(client, name, living=False) if client else None
    if client is None or job is None or job.submission_id is None:
        raise ValueError(_unknown(name, storage, "followed: a run that was not submitted speaks in its own shell"))
    submission.follow(client, job.submission_id, submission.title(job), say, verbose)


def stop(name: str, storage: Path, say: Callable[[str], None]) -> None:
    """Stop a run, which saves first, wherever it is at work.

    Raises:
        ValueError: no run of this name is at work where it can be reached from here.
    """
    client = submission.reach(say, start=False) if submission.reachable() else None
    job = submission.find(client, name, living=True) if client else None
    if client is not None and job is not None and job.submission_id is not None:
        say(f"{submission.title(job)} saves and ends")
        submission.stop(client, job.submission_id)
        say(f"stopped {submission.title(job)}; the same command continues it")
        return
    directories = [storage / name] if "/" in name else sorted(storage.glob(f"*/{name}"))
    held = {directory: owner for directory in directories if (owner := run_lease.process_of(directory))}
    if not held:
        raise ValueError(_unknown(name, storage, "stopped"))
    for directory, owner in held.items():
        if not owner["here"]:
            raise ValueError(f"{name}: runs in process {owner['pid']} on {owner['host']}; stop it there")
        say(f"{directory.parent.name}/{directory.name} saves and ends")
        os.kill(owner["pid"], signal.SIGTERM)
        end = time.monotonic() + submission.STOP_TIMEOUT_S
        while run_lease.process_of(directory) and time.monotonic() < end:
            time.sleep(POLL_S)
        say(f"stopped {directory.parent.name}/{directory.name}; the same command continues it")


def stop_all(say: Callable[[str], None]) -> None:
    """Stop the jobs of the cluster, which save first, and end the MLflow runs that they leave open."""
    client = submission.reach(say, start=False)
    for job in submission.alive(client):
        if job.submission_id is not None:
            say(f"{submission.title(job)} saves and ends")
            submission.stop(client, job.submission_id)
    for job in client.list_jobs():
        called, storage = submission.title(job), (job.metadata or {}).get("storage")
        if not called or not storage:
            continue
        kind, _, name = called.partition("/")
        trials = Path(storage).glob(f"align/{name}-*") if kind in ("sweep", "claims") else ()
        for directory in (Path(storage) / called, *trials):
            if run_lease.process_of(directory) is None and tracking.end_abandoned(directory):
                say(f"the MLflow run of {directory} is ended as KILLED")


def _unknown(name: str, storage: Path, done: str) -> str:
    at_work = ", ".join(run.called for run in all_runs(storage) if run.state in ("running", "waiting"))
    return f"{name}: no run of this name can be {done}; at work are: {at_work or 'none'}. See `slingstone status`"
