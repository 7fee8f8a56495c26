"""A Ray head on this machine for one clone of the project: no fixed ports, no shared directory, a token of its own."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import psutil

from slingstone import atomic
from slingstone.driver.job_environment import job_environment
from slingstone.driver.private import private_directory

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 30.0
IDLE_TIMEOUT_S = 3.0
PORT_OPTIONS = ("port", "dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port")
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Environment with which a Ray head listens on the loopback interface alone: Ray's own rule for machines that are no
cluster. An address of 127.0.0.1 does not suffice: Ray puts the machine's own in its place."""


class Head:
    """The head that belongs to a directory of sources. Other Ray clusters of the machine are left alone.

    Raises:
        ValueError: the directory for its token and log is not this user's alone.
    """

    def __init__(self, sources: Path) -> None:
        key = zlib.crc32(str(sources.resolve()).encode())
        self._directory = private_directory("slingstone", f"{socket.gethostname()}-{key:08x}")
        self._record = self._directory / "head.json"
        self._token = self._directory / "token"
        self._scratch = self._directory / "scratch"

    @property
    def pid(self) -> int | None:
        """The number of the head's first process, if it runs; the others descend from it."""
        running = self._running()
        return None if running is None else running["pid"]

    def job_environment(self, given: Mapping[str, str]) -> dict[str, str]:
        """Return what a job is told of its submitter's environment, which also says where the job goes.

        Raises:
            ValueError: what is secret would be shown where it goes.
        """
        running = self._running()
        here = running is not None and running["dashboard"] == given.get("RAY_API_SERVER_ADDRESS")
        return job_environment(given, self._directory if here else None)

    def start(self) -> dict[str, str]:
        """Start the head unless it runs; return the environment in which Ray's commands reach it.

        Raises:
            RuntimeError: it did not come up; names its log.
        """
        # Empty: a token of another cluster in the caller's environment would come first.
        auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": str(self._token)}
        running = self._running() or self._launch(auth)
        return auth | {"RAY_API_SERVER_ADDRESS": running["dashboard"]}

    def stop(self) -> bool:
        """Stop the head and all that runs on it; return whether one ran."""
        running = self._running()
        self._record.unlink(missing_ok=True)
        if running is None:
            return False
        jobs = json.loads(_answer(f"{running['dashboard']}/api/jobs/", self._token) or b"[]")
        busy = any(job["status"] in ("PENDING", "RUNNING") for job in jobs)
        process = psutil.Process(running["pid"])
        process.terminate()
        try:
            # Without a job nothing is left to save, but Ray waits for idle actors of its own that runs left behind.
            process.wait(STOP_TIMEOUT_S if busy else IDLE_TIMEOUT_S)
        except psutil.TimeoutExpired:
            os.killpg(running["pid"], signal.SIGKILL)
        return True

    def _running(self) -> dict | None:
        recorded = atomic.read_json(self._record)
        return recorded if recorded and _is_head(recorded["pid"]) else None

    def _launch(self, auth: dict[str, str]) -> dict:
        scratch = self._fresh_scratch()
        # A new one each time: who takes a port before Ray does hears the token of a head that does not come up.
        self._token.unlink(missing_ok=True)
        self._token.touch(mode=0o600)
        self._token.write_text(secrets.token_hex(32))
        ports = _free_ports(len(PORT_OPTIONS))
        options = [f"--{name}={port}" for name, port in zip(PORT_OPTIONS, ports, strict=True)]
        here = str(Path(sys.executable).parent)
        environment = os.environ | auth | LOOPBACK | {"PATH": f"{here}{os.pathsep}{os.environ['PATH']}"}
        log = self._directory / "head.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                [
                    *(f"{here}/ray", "start", "--head", "--block", "--min-worker-port=0", "--max-worker-port=0"),
                    *(f"--temp-dir={scratch}/ray", "--disable-usage-stats", *options),
                ],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,  # it outlives the command that started it, and its Ctrl-C
            )
        running = {"pid": process.pid, "dashboard": f"http://127.0.0.1:{ports[1]}"}
        atomic.write_text(self._record, json.dumps(running))
        deadline = time.monotonic() + START_TIMEOUT_S
        while _answer(f"{running['dashboard']}/api/jobs/", self._token) is None:
            if process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"no local Ray head came up; see {log}")
            time.sleep(0.3)
        return running

    def _fresh_scratch(self) -> str:
        """Return a new directory for Ray's sockets and logs; that of the head before, if there was one, is deleted."""
        if self._scratch.exists():
            shutil.rmtree(self._scratch.read_text(), ignore_errors=True)
        # Under /tmp whatever TMPDIR says: the paths of sockets must be short.
        made = tempfile.mkdtemp(prefix="slingstone-", dir="/tmp")
        self._scratch.write_text(made)
        return made


def _is_head(pid: int) -> bool:
    """Return whether a process is a Ray head, and not another one that got its number."""
    try:
        process = psutil.Process(pid)
        mine = process.uids().real == os.getuid()
        return mine and "ray start --head" in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _free_ports(count: int) -> list[int]:
    """Return ports that are free now; all are held until all are known, so that they differ."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _answer(url: str, token: Path) -> bytes | None:
    """Return what the head's dashboard answers to the token in a file, if it answers."""
    headers = {"Authorization": f"Bearer {token.read_text().strip()}"}
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.read()
    except (urllib.error.URLError, OSError):
        return None
