"""Joining a cluster: what Ray could not do is told in a line."""

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from reward_services import cluster_access
from slingstone import cli
from slingstone.driver import cluster

ROOT = Path(__file__).resolve().parents[2]
TIMED_OUT = (
    "The current node timed out during startup. This could happen because some of the raylet failed to startup or the "
    "GCS has become overloaded."
)


@pytest.mark.parametrize(
    ("error", "address", "said"),
    [
        (Exception(TIMED_OUT), None, "no Ray cluster started on this machine: The current node timed out"),
        (TimeoutError(), None, "no Ray cluster started on this machine: TimeoutError; if the machine is busy"),
        (ConnectionError("Could not find\nany running"), "10.0.0.1:6379", "answers at 10.0.0.1:6379: Could not find;"),
    ],
)
def test_a_start_of_ray_that_times_out_is_one_line_and_no_traceback(monkeypatch, capsys, error, address, said):
    def init(**_: Any) -> None:
        raise error

    monkeypatch.setattr(cluster.ray, "init", init)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    assert cli.run(lambda _: cluster.connect(1), Namespace()) == 1
    told = capsys.readouterr().err
    assert said in told
    assert len(told.splitlines()) == 1


JOIN = """
import json
from reward_services.cluster_access import refuse_open_cluster
from reward_services.deployment import RewardService
from slingstone.driver import cluster
from tests.driver.test_head import listening

cluster.connect(1, open_cluster=True)
said = [sorted(listening(None))]
for join in (
    lambda: refuse_open_cluster(False),
    lambda: RewardService({"name": "x", "model": "pickscore", "checkpoint": "/nowhere"}),
):
    try:
        said.append(join())
    except Exception as error:
        said.append(str(error))
print(json.dumps(said))
"""


def joined(home: Path, **auth: str) -> list[Any]:
    """Return where the cluster of a new process listens, and what it says to a job and to a reward."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_USAGE_STATS_ENABLED": "0", "HOME": str(home)} | auth
    command = [sys.executable, "-c", JOIN]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.ray
def test_a_cluster_that_a_job_starts_wants_a_token_and_cannot_be_reached_from_other_machines(tmp_path):
    found, job, reward = joined(tmp_path)
    assert set(found) <= {"127.0.0.1", "::ffff:127.0.0.1"}
    assert job is None
    assert "authentication" not in reward
    assert not (tmp_path / ".ray" / "auth_token").exists(), "none is left where others may read it"


@pytest.mark.ray
def test_neither_a_job_nor_a_reward_runs_on_a_cluster_without_authentication_unless_told_to(tmp_path):
    _, job, reward = joined(tmp_path, RAY_AUTH_MODE="disabled")
    for said in (job, reward):
        assert "has no authentication" in said
        assert "open_cluster: true" in said


def test_a_job_leaves_a_cluster_that_it_does_not_trust(monkeypatch):
    left = []
    monkeypatch.setattr(cluster.ray, "init", lambda **_: None)
    monkeypatch.setattr(cluster.ray, "shutdown", lambda: left.append(True))
    monkeypatch.setattr(cluster_access, "answers_strangers", lambda _: True)
    monkeypatch.setattr(cluster_access.ray, "get_runtime_context", lambda: Namespace(gcs_address="10.0.0.1:6379"))
    with pytest.raises(ValueError, match=r"the Ray head at 10\.0\.0\.1:6379 has no authentication"):
        cluster.connect(1)
    assert left == [True]
