"""Jobs of a Ray cluster: sent after they were checked here, followed, listed and stopped."""

import asyncio
import logging
import os
import shlex
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slingstone.config.paths import ROOT, Departure, absolute_uri
from slingstone.config.tree import Section
from slingstone.driver import run_lease
from slingstone.driver.head import Head
from slingstone.driver.luggage import LEFT_OUT, pack
from slingstone.terminal import MARKED, complain, unmarked
from slingstone.tracking.provenance import git_commit

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
STOP_TIMEOUT_S = 600
"""How long a job that is told to stop may take to save."""
PATIENCE_S = 5.0
"""How long after Ctrl-C a second one stops the job."""
KEPT_LINES = 30
"""Lines of Ray and of libraries that are shown if a job dies without a word of ours."""
ALIVE = ("PENDING", "RUNNING")


@dataclass(frozen=True)
class Job:
    """What is sent.

    Attributes:
        kind: such as `align`; results lie under `<storage>/<kind>/<name>`.
        config: the file that it was given as.
        tree: its configuration, as it was loaded.
        check: raises ValueError if a file that the configuration names is not here.
        command: what runs it; the configuration follows.
        also: more that goes along: places in the job's directory, and what is here.
        arguments: of the command, after the configuration.
    """

    kind: str
    config: str
    tree: Any
    check: Callable[[Any], object]
    command: tuple[str, ...]
    also: Mapping[str, Path]
    arguments: tuple[str, ...]


def submit(job: Job, say: Callable[[str], None], verbose: bool = False) -> None:
    """Check a job, send it to the cluster that the environment names or else to a local one, and follow it.

    Raises:
        ValueError: what the user can mend, before anything starts; a run of the same name is at work.
        RuntimeError: no cluster answers.
        SystemExit: the job failed, was stopped, or is no longer followed.
    """
    far = is_far()
    if far:
        environment()  # refuses secrets before the cluster is asked
    else:
        job.check(job.tree)
    with tempfile.TemporaryDirectory(prefix="slingstone-") as directory:
        departure = Departure(Path.cwd(), far)
        departure.files |= job.also
        place, packed = pack(Path(directory), job.config, job.tree, departure)
        tree: Any = packed  # every kind of job has a name and a storage
        _refuse_second(job.kind, tree, far)
        client = reach(say)
        if any(_is(found, job.kind, tree) for found in alive(client)):
            raise ValueError(_at_work(job.kind, tree.name, "a job of this cluster"))
        sent = _send(client, job, tree, [*job.command, place, *job.arguments], directory)
    say(f"{job.kind} {tree.name} is sent to {client.get_address()}")
    follow(client, sent, f"{job.kind}/{tree.name}", say, verbose)


def environment() -> dict[str, str]:
    """Return the variables of a job; what is secret goes by a private file, see `job_environment`.

    Raises:
        ValueError: what is secret would be shown where the job goes.
    """
    given = os.environ | {"SLINGSTONE_GIT_COMMIT": git_commit()}
    if uri := given.get("MLFLOW_TRACKING_URI"):
        given["MLFLOW_TRACKING_URI"] = absolute_uri(uri, Path.cwd())
    told = Head(ROOT).job_environment(given)
    return told | {MARKED: "1", "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_TIMEOUT_S)}


def is_far() -> bool:
    """Tell whether jobs go to another cluster than the local one of this installation."""
    named = next((os.environ[name] for name in ADDRESSES if os.environ.get(name)), None)
    if named is None:
        return False
    head = Head(ROOT)
    return head.pid is None or head.start()["RAY_API_SERVER_ADDRESS"] != named


def reachable() -> bool:
    """Tell whether the environment names a cluster, or the local one runs."""
    return any(os.environ.get(name) for name in ADDRESSES) or Head(ROOT).pid is not None


def reach(say: Callable[[str], None], start: bool = True) -> "JobSubmissionClient":
    """Return a client of the cluster that the environment names, or else of the local one.

    Args:
        say: shows a line to the user.
        start: whether a local one is started if none runs.

    Raises:
        RuntimeError: none answers.
        ValueError: none runs, and none is to be started.
    """
    if not any(os.environ.get(name) for name in ADDRESSES):
        head = Head(ROOT)
        if head.pid is None:
            if not start:
                raise ValueError("no local Ray head runs, and RAY_API_SERVER_ADDRESS names no cluster")
            say("starting a local Ray head; `make stop` or `slingstone head stop` ends it")
        os.environ.update(head.start())
    from ray.job_submission import JobSubmissionClient  # imports ray, which takes seconds

    logging.getLogger("ray").setLevel(logging.ERROR)
    for module in ("job.sdk", "dashboard_sdk"):  # which set their own to INFO when they are imported
        logging.getLogger(f"ray.dashboard.modules.{module}").setLevel(logging.ERROR)
    address = next(os.environ[name] for name in ADDRESSES if os.environ.get(name))
    try:
        return JobSubmissionClient()
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RuntimeError(f"no Ray cluster answers at {address}: {reason}; start it, or mend the address") from error


def alive(client: "JobSubmissionClient") -> list["JobDetails"]:
    """Return the jobs of ours that wait or run."""
    return [job for job in client.list_jobs() if job.status in ALIVE and "slingstone" in (job.metadata or {})]


def find(client: "JobSubmissionClient", name: str, living: bool) -> "JobDetails | None":
    """Return the newest job of a name, `NAME` or `JOB/NAME`.

    Raises:
        ValueError: jobs of several kinds have it.
    """
    jobs = alive(client) if living else [job for job in client.list_jobs() if "slingstone" in (job.metadata or {})]
    found = [job for job in jobs if name in (title(job), title(job).partition("/")[2])]
    kinds = sorted({title(job) for job in found})
    if len(kinds) > 1:
        raise ValueError(f"{name}: several jobs are called so; give one of {', '.join(kinds)}")
    return max(found, key=lambda job: job.start_time or 0, default=None)


def title(job: "JobDetails") -> str:
    """Return `JOB/NAME`."""
    return (job.metadata or {}).get("slingstone", "")


def follow(
    client: "JobSubmissionClient", job: str, called: str, say: Callable[[str], None], verbose: bool = False
) -> None:
    """Show what a job says until it ends; a first Ctrl-C leaves it alone, a second one stops it.

    Raises:
        SystemExit: it failed, was stopped, or is no longer followed.
    """
    log = _Log(say, verbose)
    try:
        asyncio.run(log.show(client, job))
    except KeyboardInterrupt:
        say(f"\n{called} goes on. Follow it again: slingstone follow {called}   Stop it: slingstone stop {called}")
        say(f"Ctrl-C again within {PATIENCE_S:g} s stops it now, saved")
        try:
            time.sleep(PATIENCE_S)
        except KeyboardInterrupt:
            client.stop_job(job)
            asyncio.run(log.show(client, job))
        else:
            raise SystemExit(130) from None
    match str(client.get_job_status(job)):
        case "SUCCEEDED":
            return
        case "STOPPED":
            say(f"stopped; the same command continues {called}, `slingstone status` lists runs")
            raise SystemExit(143)
        case _:
            log.explain(client.get_job_info(job).message or "")
            raise SystemExit(1)


def stop(client: "JobSubmissionClient", job: str) -> None:
    """Tell a job to stop, and wait until it has saved and ended."""
    client.stop_job(job)
    end = time.monotonic() + STOP_TIMEOUT_S
    while str(client.get_job_status(job)) in ALIVE and time.monotonic() < end:
        time.sleep(0.3)


class _Log:
    """A job's log as its user reads it: our lines; with `verbose` Ray's, too."""

    def __init__(self, say: Callable[[str], None], verbose: bool) -> None:
        self._say, self._verbose = say, verbose
        self._seen = 0
        self._other: deque[str] = deque(maxlen=KEPT_LINES)
        self._told = False

    async def show(self, client: "JobSubmissionClient", job: str) -> None:
        """Show what was not shown yet, until the job ends."""
        rest, count = "", 0
        async for chunk in client.tail_job_logs(job):
            *lines, rest = (rest + chunk).split("\n")
            for line in lines:
                if (count := count + 1) > self._seen:
                    self._seen = count
                    self._take(line)
        if rest:
            self._take(rest)

    def _take(self, line: str) -> None:
        ours = unmarked(line)
        if ours is None:
            self._other.append(line)
            if self._verbose:
                print(line, file=sys.stderr, flush=True)
        elif ours.startswith("error: "):
            self._told = True
            complain(ours)
        elif self._told and not self._other:
            complain(ours)
        else:
            self._say(ours)

    def explain(self, message: str) -> None:
        """Say why the job failed, unless it said so itself."""
        if not self._told:
            complain("\n".join([*([] if self._verbose else self._other), f"error: the job failed: {message}"]))


def _send(client: "JobSubmissionClient", job: Job, tree: Section, command: list[str], directory: str) -> str:
    name = str(getattr(tree, "name", job.kind))
    return client.submit_job(
        entrypoint=shlex.join(command),
        runtime_env={"working_dir": directory, "excludes": [*LEFT_OUT], "env_vars": environment()},
        metadata={"slingstone": f"{job.kind}/{name}", "storage": str(getattr(tree, "storage", ""))},
    )


def _refuse_second(kind: str, tree: Any, far: bool) -> None:
    directory = Path(tree.storage) / kind / tree.name
    if not far and (holder := run_lease.holder(directory)) is not None:
        raise ValueError(_at_work(kind, tree.name, holder))


def _is(job: "JobDetails", kind: str, tree: Any) -> bool:
    return title(job) == f"{kind}/{tree.name}" and (job.metadata or {}).get("storage") == tree.storage


def _at_work(kind: str, name: str, where: str) -> str:
    return (
        f"name = {name!r}: {kind} {name} is at work already, by {where}; look on with"
        f" `slingstone follow {kind}/{name}`, end it with `slingstone stop {kind}/{name}`, or name this one otherwise"
    )
