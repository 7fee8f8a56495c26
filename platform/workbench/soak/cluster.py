"""Where a soak happens: a Ray head and an MLflow server of its own, both of which may be killed and started again."""

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import psutil
from ray.job_submission import JobSubmissionClient

from slingstone.config.paths import ROOT
from slingstone.driver.head import Head

SETTINGS = {
    "RAY_JOB_STOP_WAIT_TIME_S": "300",  # a preempted run has the time to save
    "RAY_task_events_max_num_task_in_gcs": "500",  # Ray's list of past tasks is full before the warm-up ends
}


def wait(true: Callable[[], bool], what: str, timeout_s: float = 300.0, poll_s: float = 0.1) -> None:
    """Return as soon as something is true.

    Raises:
        TimeoutError: it took too long; names it.
    """
    deadline = time.monotonic() + timeout_s
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s:g} s: {what}")
        time.sleep(poll_s)


class MlflowServer:
    """An MLflow server over a file, at an address that stays when it is started again."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server and wait until it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={self._port}", "--workers=1"]
        command += [f"--backend-store-uri=sqlite:///{self._directory / 'mlflow.db'}"]
        command += [f"--artifacts-destination={self._directory / 'artifacts'}"]
        with (self._directory / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=self._directory,
                # For jobs it would keep a directory in /dev/shm, which a killed server leaves there.
                env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            )
        wait(self._answers, f"an MLflow server; see {self._directory / 'server.log'}")

    def kill(self) -> None:
        """Kill the server and its workers."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError(f"no MLflow server came up; see {self._directory / 'server.log'}")
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False


class Cluster:
    """A head that takes jobs, and the MLflow server that they report to."""

    jobs: JobSubmissionClient
    """What the head has of jobs; `start_head` comes first."""

    def __init__(self, directory: Path) -> None:
        self._head = Head(directory)
        self.mlflow = MlflowServer(directory / "mlflow")

    @property
    def pid(self) -> int | None:
        """The number of the head's first process, if it runs."""
        return self._head.pid

    def start_head(self) -> None:
        """Start the head and wait until it takes jobs."""
        with patch.dict(os.environ, SETTINGS):
            reached = self._head.start()
        token = Path(reached["RAY_AUTH_TOKEN_PATH"]).read_text().strip()
        headers = {"Authorization": f"Bearer {token}"}
        self.jobs = JobSubmissionClient(reached["RAY_API_SERVER_ADDRESS"], headers=headers)

    def kill_head(self) -> list[psutil.Process]:
        """Kill the head's processes at once; return those that descend from it, which have to notice by themselves."""
        assert self.pid is not None
        descendants = psutil.Process(self.pid).children(recursive=True)
        os.killpg(self.pid, signal.SIGKILL)
        return descendants

    def stop(self) -> None:
        """End both."""
        self._head.stop()
        self.mlflow.kill()

    def submit(self, *command: str) -> str:
        """Have the cluster run a Python program of these sources; return the job's id."""
        source = os.pathsep.join([str(ROOT / "platform"), str(ROOT)])
        return self.jobs.submit_job(entrypoint=shlex.join(["env", f"PYTHONPATH={source}", sys.executable, *command]))


@contextmanager
def running(directory: Path) -> Iterator[Cluster]:
    """Yield a running head and server below a directory; nothing of them is left afterwards."""
    cluster = Cluster(directory)
    try:
        cluster.mlflow.start()
        cluster.start_head()
        yield cluster
    finally:
        cluster.stop()
