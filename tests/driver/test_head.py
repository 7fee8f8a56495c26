"""The local head: started once, found again, reached only with its token, gone when stopped."""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request

import psutil
import pytest

from slingstone.driver.head import Head

pytestmark = pytest.mark.ray


def listening(pid: int | None) -> set[str]:
    """Return the addresses on which a process and those that descend from it listen."""
    first = psutil.Process(pid)
    every = [one for process in (first, *first.children(recursive=True)) for one in process.net_connections("inet")]
    found = {one.laddr[0] for one in every if one.status == psutil.CONN_LISTEN}
    assert found
    return found


@pytest.fixture
def head(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("COLUMNS", "20")  # a narrow terminal, to which some programs cut what they print
    one = Head(tmp_path)
    yield one
    one.stop()


def test_a_head_is_started_once_and_stopped(head, tmp_path):
    environment = head.start()
    assert head.start() == environment, "found again, not started twice"
    assert Head(tmp_path / "elsewhere")._running() is None, "another clone has a head of its own"
    assert os.stat(environment["RAY_AUTH_TOKEN_PATH"]).st_mode & 0o077 == 0, "the token is for its owner alone"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{environment['RAY_API_SERVER_ADDRESS']}/api/jobs/", timeout=10)
    assert listening(head.pid) <= {"127.0.0.1", "::ffff:127.0.0.1"}, "other machines reach none of its ports"
    assert head.stop()
    assert not head.stop(), "nothing is left to stop"


@pytest.mark.slow
def test_a_head_on_which_serve_was_left_behind_stops_at_once(head):
    environment = os.environ | head.start()
    left = "import ray; from ray import serve; ray.init(); serve.start(proxy_location='Disabled')"
    address = {"RAY_ADDRESS": environment["RAY_API_SERVER_ADDRESS"]}
    command = ["ray", "job", "submit", "--", sys.executable, "-c", left]
    subprocess.run([sys.executable, "-m", "ray.scripts.scripts", *command[1:]], env=environment | address, check=True)
    start = time.monotonic()
    assert head.stop()
    assert time.monotonic() - start < 20, "Ray alone waits for 30 s"
