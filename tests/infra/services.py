"""The services of infra/mlflow, started for a test on the loopback interface: Postgres, an S3 endpoint, MLflow."""

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
KEYS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
START_S = 180


def free_port() -> int:
    """Return a port of the loopback interface on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def postgres() -> Iterator[str]:
    """Yield the URI of an empty database that asks for a password; Postgres refuses to run as root."""
    tools, port, password = POSTGRES[-1].parent, free_port(), secrets.token_hex(12)
    root = Path(tempfile.mkdtemp(prefix="pg"))
    user = "postgres" if os.getuid() == 0 else None
    try:
        (root / "password").write_text(password)
        if user:
            for path in (root, root / "password"):
                shutil.chown(path, user)
        initdb = [str(tools / "initdb"), f"--pgdata={root / 'data'}", "--username=mlflow", "--auth=scram-sha-256"]
        initdb += [f"--pwfile={root / 'password'}", "--no-sync", "--encoding=UTF8", "--locale=C"]
        subprocess.run(initdb, check=True, user=user, cwd=root, capture_output=True)
        served = [str(POSTGRES[-1]), "-D", str(root / "data"), "-p", str(port), "-k", str(root), "-F"]
        served += ["-c", "listen_addresses=127.0.0.1"]
        with _running(served, user=user, cwd=root) as process:
            _wait(process, lambda: _connects(port))
            time.sleep(1)
            yield f"postgresql://mlflow:{password}@127.0.0.1:{port}/postgres"
    finally:
        shutil.rmtree(root, ignore_errors=True)


@contextmanager
def s3(log: Path) -> Iterator[str]:
    """Yield the address of an S3 endpoint; its buckets are gone when it ends."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with _running(command, log=log) as process:
        _wait(process, lambda: _connects(port))
        yield f"http://127.0.0.1:{port}"


@contextmanager
def mlflow(database: str, endpoint: str, bucket: str, log: Path) -> Iterator[str]:
    """Yield the URI of an MLflow server as infra/docker/mlflow.Dockerfile starts it."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}", "--workers=1"]
    command += [f"--artifacts-destination=s3://{bucket}"]
    # With the driver of infra/docker/mlflow.Dockerfile: SQLAlchemy would take another one by itself.
    driver = database.replace("postgresql:", "postgresql+psycopg2:", 1)
    env = {"MLFLOW_BACKEND_STORE_URI": driver, "MLFLOW_S3_ENDPOINT_URL": endpoint, "MLFLOW_DISABLE_TELEMETRY": "true"}
    env |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with _running(command, log=log, env=os.environ | KEYS | env) as process:
        _wait(process, lambda: _answers(f"http://127.0.0.1:{port}/health"))
        yield f"http://127.0.0.1:{port}"


@contextmanager
def _running(
    command: list[str],
    log: Path | None = None,
    env: dict[str, str] | None = None,
    user: str | None = None,
    cwd: Path | None = None,
) -> Iterator[subprocess.Popen]:
    """Run a server in a session of its own, and end all of that session's processes afterwards."""
    with open(log or os.devnull, "wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=env, user=user, cwd=cwd, start_new_session=True
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 15)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()


def _wait(process: subprocess.Popen, ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_S
    while not ready():
        assert process.poll() is None, f"{process.args} ended with {process.returncode}"
        assert time.monotonic() < deadline, f"{process.args} did not come up"
        time.sleep(0.3)


def _connects(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
    except OSError:
        return False
    return True


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def has_postgres() -> bool:
    """Return whether Debian's Postgres is installed, and its user if this is root."""
    names = {entry.pw_name for entry in pwd.getpwall()}
    return bool(POSTGRES) and (os.getuid() != 0 or "postgres" in names)
