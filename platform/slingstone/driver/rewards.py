"""Has the reward services run: deploys them, or checks those of others."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import ray
from ray import serve
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, ReplicaState

from reward_services.client import ImageStore
from reward_services.deployment import build
from reward_services.protocol import RewardError
from slingstone.config import Placement, RewardEntry, Rewards
from slingstone.driver.placement import managed
from slingstone.worker.rewards import remote_client

POLL_S = 0.2


@contextmanager
def running(
    rewards: Rewards, placement: Placement, starting: AbstractContextManager[None] | None = None
) -> Iterator[None]:
    """Have the services run: deployed here and deleted at the end, or checked if they are external.

    Args:
        rewards: which.
        placement: on which nodes.
        starting: entered while they are deployed and left as soon as they run.

    Raises:
        ValueError: naming every external service that does not run, or the services that did not start in time, and
            what they wait for.
    """
    deployed = managed(rewards, placement)
    if not deployed:
        if rewards.services and rewards.backend != "in_process":
            check(rewards)
        yield
        return
    logging.getLogger("ray.serve").setLevel(logging.CRITICAL)  # its news go to its own log files
    serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR"})
    targets = [serve.RunTarget(build(entry.spec), entry.app_name, None) for entry in deployed]
    try:
        try:
            with starting or nullcontext():
                serve.run_many(targets, wait_for_applications_running=False)
                _await(rewards, deployed)
        except RuntimeError as error:
            raise ValueError(f"rewards.services: {_reason(rewards) or error}") from error
        yield
    finally:
        for entry in deployed:
            serve.delete(entry.app_name, _blocking=False)


def _await(rewards: Rewards, deployed: Sequence[RewardEntry]) -> None:
    """Wait until all services run."""
    end = time.monotonic() + rewards.start_timeout_s
    while True:
        applications = serve.status().applications
        found = {entry: applications[entry.app_name] for entry in deployed}
        waiting = {entry: one for entry, one in found.items() if one.status != ApplicationStatus.RUNNING}
        if not waiting:
            return
        if failed := [one.message for one in waiting.values() if one.status == ApplicationStatus.DEPLOY_FAILED]:
            raise RuntimeError("; ".join(failed))
        if time.monotonic() > end:
            free = ray.available_resources()
            missing = "; ".join(_missing(entry, one) for entry, one in waiting.items())
            limit = f"rewards.start_timeout_s = {rewards.start_timeout_s:g}"
            raise ValueError(
                f"rewards.services: not all are up after {limit}: {missing};"
                f" free now: {free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs; end what else runs, start"
                " nodes, or allow more time for downloads"
            )
        time.sleep(POLL_S)


def _missing(entry: RewardEntry, application: ApplicationStatusOverview) -> str:
    """Return what a service that is not up waits for."""
    states = [deployment.replica_states for deployment in application.deployments.values()]
    up = sum(counts.get(ReplicaState.RUNNING, 0) for counts in states)
    where = "" if entry.node_label is None else f" on nodes of {entry.node_label}"
    needs = f"{entry.num_cpus:g} CPUs and {entry.num_gpus:g} GPUs{where} each"
    return f"{entry.name} has {up} of {entry.num_replicas} replicas, of {needs}"


def check(rewards: Rewards) -> None:
    """Refuse external services that do not run.

    Raises:
        ValueError: naming each.
    """
    if rewards.backend == "http":
        if absent := list(_unreachable(rewards)):
            raise ValueError(f"rewards.url = {rewards.url!r}: {'; '.join(absent)}")
        return
    applications, absent = serve.status().applications, []
    for entry in rewards.services:
        status = applications[entry.app_name].status.value if entry.app_name in applications else "not deployed"
        if status != ApplicationStatus.RUNNING.value:
            absent.append(f"{entry.name} (application {entry.app_name!r} is {status})")
    if absent:
        remedy = "deploy them, or set rewards.lifecycle: managed"
        raise ValueError(f"rewards.services: external rewards do not run: {', '.join(absent)}; {remedy}")


def _unreachable(rewards: Rewards) -> Iterator[str]:
    for entry in rewards.services:
        try:
            remote_client(rewards, entry, ImageStore()).describe()
        except RewardError as error:
            yield str(error)


def _reason(rewards: Rewards) -> str:
    """Return what the replicas said when they did not start: the last line of each reward's own message."""
    applications = serve.status().applications
    said = []
    for entry in rewards.services:
        deployments = applications[entry.app_name].deployments if entry.app_name in applications else {}
        for deployment in deployments.values():
            if deployment.status != "HEALTHY" and (message := deployment.message.strip()):
                said.append(f"{entry.name} did not start: {message.splitlines()[-1].strip()}")
    return "; ".join(said)
