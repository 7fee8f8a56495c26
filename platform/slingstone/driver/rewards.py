"""Who runs the rewards, and how a worker asks them."""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from ray import serve
from ray.serve.schema import ApplicationStatus

from reward_services.client import ImageStore
from reward_services.deployment import build
from reward_services.protocol import RewardError
from slingstone.config import Rewards
from slingstone.worker.rewards import remote_client


@contextmanager
def running(rewards: Rewards, starting: AbstractContextManager[None] | None = None) -> Iterator[None]:
    """Have the services run: deployed here and deleted at the end, or checked if they are external.

    Args:
        rewards: which.
        starting: entered while they are deployed and left as soon as they run.

    Raises:
        ValueError: naming every external service that does not run, or the service that did not start.
    """
    if rewards.backend == "in_process" or not rewards.services:
        yield
        return
    if rewards.lifecycle == "external":
        check(rewards)
        yield
        return
    logging.getLogger("ray.serve").setLevel(logging.CRITICAL)  # its news go to its own log files
    serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR"})
    targets = [serve.RunTarget(build(entry.spec), entry.app_name, None) for entry in rewards.services]
    try:
        try:
            with starting or nullcontext():
                serve.run_many(targets, wait_for_applications_running=True)
        except RuntimeError as error:
            raise ValueError(f"rewards.services: {_reason(rewards) or error}") from error
        yield
    finally:
        for entry in rewards.services:
            serve.delete(entry.app_name, _blocking=False)


def check(rewards: Rewards) -> None:
    """Refuse external services that do not run.

    Raises:
        ValueError: naming each.
    """
    if rewards.backend == "http":
        _check_http(rewards)
        return
    applications = serve.status().applications
    absent = []
    for entry in rewards.services:
        status = applications[entry.app_name].status if entry.app_name in applications else None
        if status != ApplicationStatus.RUNNING:
            absent.append(
                f"{entry.name} (application {entry.app_name!r} is {status.value if status else 'not deployed'})"
            )
    if absent:
        remedy = "deploy them, or set rewards.lifecycle: managed"
        raise ValueError(f"rewards.services: external rewards do not run: {', '.join(absent)}; {remedy}")


def _check_http(rewards: Rewards) -> None:
    absent = []
    for entry in rewards.services:
        try:
            remote_client(rewards, entry, ImageStore()).describe()
        except RewardError as error:
            absent.append(str(error))
    if absent:
        raise ValueError(f"rewards.url = {rewards.url!r}: {'; '.join(absent)}")


def _reason(rewards: Rewards) -> str:
    """Return what the replicas said when they did not start: the last line of each reward's own message."""
    applications = serve.status().applications
    said = []
    for entry in rewards.services:
        if entry.app_name in applications:
            for deployment in applications[entry.app_name].deployments.values():
                lines = [line.strip() for line in deployment.message.splitlines() if line.strip()]
                if deployment.status != "HEALTHY" and lines:
                    said.append(f"{entry.name} did not start: {lines[-1]}")
    return "; ".join(said)
