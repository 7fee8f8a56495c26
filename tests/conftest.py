"""Environment of all tests, and the one Ray cluster that those marked `ray` share."""

import gc
import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from slingstone.driver.head import LOOPBACK
from tests.micro_run import micro, micro_checkpoints, micro_tree, write_run  # noqa: F401
from tests.reward_checkpoints import rewards_root  # noqa: F401

ROOT = Path(__file__).resolve().parents[1]

# Read when Ray, DeepSpeed or torch are first imported, and inherited by every worker process.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
os.environ |= LOOPBACK
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.3")
os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(ROOT), str(ROOT / "platform"), os.environ.get("PYTHONPATH")])
)


@pytest.fixture(scope="session")
def proxy() -> str:
    """Where the cluster serves HTTP: a port of the loopback interface on which nobody listened before."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture(scope="session")
def cluster(proxy: str) -> Iterator[None]:
    """A local Ray cluster with Serve, HTTP on a port of its own; CPUs are logical, so that tests run on any machine.

    No other fixture may shut Ray down, and none may join a cluster that a developer runs.
    """
    import ray
    from ray import serve

    ray.init(address="local", num_cpus=8, include_dashboard=False, object_store_memory=300 * 2**20)
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": int(proxy.rpartition(":")[2])})
    yield
    serve.shutdown()
    ray.shutdown()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest, so that no worker of xdist is left alone with it at the end."""
    long = {item.path for item in items if item.get_closest_marker("ray")}
    items.sort(key=lambda item: item.path not in long)


def pytest_collection_finish() -> None:
    """Take what was imported out of every garbage collection: DeepSpeed asks for four an engine, of .3 s each."""
    gc.freeze()
