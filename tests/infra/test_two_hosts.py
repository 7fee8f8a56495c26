"""The two-machine recipe of docs/cluster.md in two network namespaces: nothing shared but files.

Nothing leaves the two namespaces: their only links are loopback and the cable between them.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.infra.facts import ROOT
from tests.rewards.conftest import rewards_root  # noqa: F401  (a fixture)
from tests.runtime.conftest import micro_checkpoints, micro_tree, write_run  # noqa: F401  (fixtures)

FIRST, SECOND = "10.77.7.1", "10.77.7.2"
BIN = ROOT / ".venv" / "bin"
WHERE_RANKS_RAN = """
import json, ray
from ray._private import state
ray.init(address="10.77.7.1:6379", log_to_driver=False, logging_level="ERROR")
address = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
actors = [actor for actor in state.actors().values() if "TrainWorker" in actor["ActorClassName"]]
print(json.dumps(sorted(address.get(actor["Address"]["NodeID"], "?") for actor in actors)))
"""


def can_make_namespaces() -> bool:
    """Return whether this user may make and join a network namespace."""
    if os.getuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"probe{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode == 0
    joined = made and subprocess.run(["ip", "netns", "exec", name, "true"], capture_output=True).returncode == 0
    subprocess.run(["ip", "netns", "del", name], capture_output=True)
    return joined


pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(not can_make_namespaces(), reason="needs root and iproute2, to make network namespaces"),
    pytest.mark.skipif(not (BIN / "ray").is_file(), reason="the recipe starts from a clone after `make setup`"),
]


class Hosts:
    """Two namespaces with a cable between them; commands run in them with one token and no other credentials."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.names = [f"sling{os.getpid()}{side}" for side in "ab"]
        self.env = {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "HOME": str(scratch),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(scratch / "token"),
            "RAY_USAGE_STATS_ENABLED": "0",
            "GLOO_SOCKET_IFNAME": "cable",
            "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu",
            "LANG": "C.UTF-8",
        }

    def connect(self) -> None:
        """Make the namespaces, their addresses and the cable."""
        first, second = self.names
        commands = [f"netns add {first}", f"netns add {second}"]
        commands += [f"link add cable netns {first} type veth peer name cable netns {second}"]
        for name, address in ((first, FIRST), (second, SECOND)):
            commands += [f"-n {name} link set lo up", f"-n {name} addr add {address}/24 dev cable"]
            commands += [f"-n {name} link set cable up"]
        for command in commands:
            subprocess.run(["ip", *command.split()], check=True)

    def run(self, host: int, command: list[str], timeout: float = 240) -> str:
        """Run a command on a host; return what it printed."""
        given = dict(os.environ) | self.env
        for name in ("PYTHONPATH", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
            given.pop(name, None)
        done = subprocess.run(
            ["ip", "netns", "exec", self.names[host], *command],
            cwd=ROOT,
            env=given,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def disconnect(self) -> None:
        """End the processes of both namespaces, and the namespaces."""
        for name in self.names:
            for _ in range(20):
                pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout.split()
                if not pids:
                    break
                for pid in pids:
                    with suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
                time.sleep(0.3)
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    scratch = Path(tempfile.mkdtemp(prefix="sl"))  # short: sockets lie under it
    made = Hosts(scratch)
    try:
        made.connect()
        yield made
    finally:
        made.disconnect()
        shutil.rmtree(scratch, ignore_errors=True)


def test_a_job_submitted_on_the_first_host_trains_on_both(hosts, write_run, tmp_path):  # noqa: F811
    (hosts.scratch / "token").write_text("a-token-of-this-test-alone-0123456789")
    small = ["--num-cpus=1", "--object-store-memory=100000000", "--disable-usage-stats"]
    head = ["ray", "start", "--head", f"--node-ip-address={FIRST}", "--port=6379", f"--temp-dir={hosts.scratch}/ray"]
    hosts.run(0, [*head, *small])
    hosts.run(1, ["ray", "start", f"--address={FIRST}:6379", f"--node-ip-address={SECOND}", *small])
    assert hosts.run(0, ["ray", "status"]).count("node_") == 2

    short = "rewards.backend=in_process evaluation.reference=null evaluation.num_prompts=2 runtime.num_workers=2"
    make = ["make", "align", f"CONFIG={write_run()}", f"STORAGE={tmp_path}", f"ARGS={short}"]
    said = hosts.run(0, ["env", "RAY_API_SERVER_ADDRESS=http://127.0.0.1:8265", *make], timeout=540)
    assert "32/32 images" in said
    assert (tmp_path / "align" / "micro" / "summary.json").is_file()

    where = hosts.run(0, ["python", "-c", WHERE_RANKS_RAN]).splitlines()[-1]
    assert where == f'["{FIRST}", "{SECOND}"]'
