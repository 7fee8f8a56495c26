"""On a cluster of several nodes, ranks and replicas land where the configuration says.

Each scenario is a process of its own, with a cluster that it starts and ends: the session's has one node.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.infra.facts import ROOT

pytestmark = pytest.mark.ray


@pytest.fixture
def scenario(write_run, tmp_path) -> Callable[[str], dict[str, Any]]:
    """Play a scenario of several_nodes.py; return what it found."""

    def play(name: str) -> dict[str, Any]:
        # Dead nodes are noticed in seconds rather than in half a minute.
        quick = {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "5"}
        quick |= {"RAY_worker_niceness": "0", "RAY_memory_monitor_refresh_ms": "0"}
        done = subprocess.run(
            [sys.executable, "-m", "tests.infra.several_nodes", name, str(write_run()), str(tmp_path)],
            cwd=ROOT,
            env=os.environ | quick,
            capture_output=True,
            text=True,
            timeout=420,
        )
        assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return json.loads(Path(tmp_path / "found.json").read_text())

    return play


@pytest.mark.slow
def test_ranks_and_replicas_land_on_the_nodes_of_their_group(scenario):
    found = scenario("lands")
    ranks = {name: groups for name, groups in found["groups"].items() if "TrainWorker" in name}
    replicas = {name: groups for name, groups in found["groups"].items() if "ServeReplica" in name}
    assert list(ranks.values()) == [["trainer"]]
    assert [found["nodes"][name] for name in ranks] == [2], "spread over both nodes of the group"
    assert len(replicas) == 2
    assert found["groups"]["Board"] == ["head"], "beside the driver, which outlives the nodes that train"
    assert all(groups == ["reward"] for groups in replicas.values())
    assert found["images"] == 32
    assert "placement.rewards = 'slingstone/group=nowhere': no node carries this label" in found["refusal"]


@pytest.mark.slow
def test_rewards_share_the_workers_gpus_only_because_the_workers_part_is_held_meanwhile(scenario):
    assert scenario("shares_gpus") == {"held": True, "not_held": False}
