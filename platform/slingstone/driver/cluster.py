"""Joins a Ray cluster, or starts one in this process."""

import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import ray
from ray._private import ray_constants

from reward_services.cluster_access import refuse_open_cluster
from slingstone.config import paths
from slingstone.driver.head import LOOPBACK


def connect(threads_per_worker: int, open_cluster: bool = False, dashboard: bool = False) -> None:
    """Join the cluster that RAY_ADDRESS names, as in a submitted job, or start one in this process.

    Workers and replicas import this very source, not what happens to be installed where they run.

    Args:
        threads_per_worker: of every process.
        open_cluster: whether a cluster may be used that has no authentication.
        dashboard: whether one that starts here has a dashboard, by which Ray Train learns that a run was killed and
            its CPUs are free.

    Raises:
        ValueError: the cluster has no authentication.
        RuntimeError: no cluster came up, or none answers at the address.
    """
    source = os.pathsep.join(dict.fromkeys([str(paths.PACKAGES), str(paths.ROOT)]))
    threads = str(threads_per_worker)
    env = {
        "PYTHONPATH": source,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION": "0",
        # What never fits was refused before; what does may wait for a trial that is being taken down, or for a node.
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
    }
    address = os.environ.get("RAY_ADDRESS", "local")
    local: dict[str, Any] = {"include_dashboard": dashboard} if address == "local" else {}
    if address != "local":
        env["RAY_ADDRESS"] = address  # where several clusters share a machine, Ray's own helpers would not know which
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, **local}
    what = "no Ray cluster started on this machine" if address == "local" else f"no Ray cluster answers at {address}"
    with starting(what), private_head() if address == "local" else nullcontext():
        ray.init(address=address, runtime_env={"env_vars": env}, **settings)
    try:
        refuse_open_cluster(open_cluster)
    except ValueError:
        ray.shutdown()
        raise


@contextmanager
def private_head() -> Iterator[None]:
    """Have a head that `ray.init` starts in this block listen on the loopback interface alone, and want a token.

    The token is a new one, in this process's environment, unless there is one there or RAY_AUTH_MODE says otherwise.
    """
    if not os.environ.keys() & {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # Ray itself would leave one in ~/.ray that all may read
    # Ray has read the variable when it was imported; the processes that it starts read it again.
    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    added = LOOPBACK.keys() - os.environ.keys()
    os.environ |= LOOPBACK
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        for name in added:
            del os.environ[name]


@contextmanager
def starting(what: str) -> Iterator[None]:
    """Tell in a sentence, beginning with `what`, that something of Ray did not start.

    Raises:
        RuntimeError: it did not, for whatever reason Ray gives: under load it raises bare exceptions as it times out.
    """
    try:
        yield
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        remedy = "if the machine is busy, try again when it is less so, or start fewer jobs at a time"
        raise RuntimeError(f"{what}: {reason}; {remedy}") from error
