"""Who runs the rewards, and how a worker asks them."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from ray import serve
from ray.serve.schema import ApplicationStatus

from reward_services import models
from reward_services.client import ImageStore, InProcessClient, RewardClient, ServeClient
from reward_services.deployment import build
from slingstone.config import RewardEntry, Rewards


@contextmanager
def running(rewards: Rewards) -> Iterator[None]:
    """Have the services run: deployed here and deleted at the end, or checked if they are external.

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


def clients(rewards: Rewards, device: torch.device) -> Mapping[str, RewardClient]:
    """Return a client for each reward, in the order of the configuration."""
    store = ImageStore()

    def client(entry: RewardEntry) -> RewardClient:
        if rewards.backend == "serve":
            return ServeClient(entry.name, entry.deadline_s, store)
        local = entry.spec.model_copy(update={"device": str(device)})
        return InProcessClient(models.load(local), entry.name)

    return {entry.name: client(entry) for entry in rewards.services}


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
