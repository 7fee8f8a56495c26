"""Who runs the rewards, and how a worker asks them."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.distributed as dist
from ray import serve
from ray.serve.schema import ApplicationStatus
from torch import Tensor

from reward_services import models
from reward_services.client import ImageStore, InProcessClient, RewardClient, ServeClient
from reward_services.deployment import build
from reward_services.http_client import HttpClient
from reward_services.prepared import PreparingClient
from reward_services.preprocess import Preprocess
from reward_services.protocol import RewardError, RewardFailedError, RewardUnavailableError
from slingstone.config import Experiment, FixedScale, RewardEntry, Rewards, RunningScale
from slingstone.panel import RewardPanel, RewardTerm, Scale, Tolerance
from slingstone.panel import RunningScale as Running


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


def clients(rewards: Rewards, device: torch.device) -> Mapping[str, RewardClient]:
    """Return a client for each reward, in the order of the configuration."""
    store = ImageStore()

    def client(entry: RewardEntry) -> RewardClient:
        if rewards.backend == "in_process":
            local = entry.spec.model_copy(update={"device": str(device)})
            return InProcessClient(models.load(local), entry.name)
        plain = _remote(rewards, entry, store)
        if entry.preprocess_at == "service":
            return plain
        return PreparingClient(_remote(rewards, entry, store, prepared=True), _rule(entry.name, plain))

    return {entry.name: client(entry) for entry in rewards.services}


def panel(run: Experiment, asked: Mapping[str, RewardClient]) -> RewardPanel:
    """Return the rewards that are trained on; held-out ones are only asked by evaluations."""
    trained_on = [entry for entry in run.rewards.services if entry.weight > 0 and run.objective.reward_weight > 0]
    terms = [RewardTerm(entry.name, entry.weight, asked[entry.name].submit, _scale(entry)) for entry in trained_on]
    # A request that is refused would be refused again: it is a mistake, and no outage.
    errors = (RewardUnavailableError, RewardFailedError) if run.rewards.on_failure == "drop" else ()
    return RewardPanel(terms, Tolerance(errors, run.rewards.drops_in_a_row), _sum_over_ranks)


def _sum_over_ranks(tensor: Tensor) -> Tensor:
    total = tensor.clone()
    dist.all_reduce(total)
    return total


def _scale(entry: RewardEntry) -> Scale | Running:
    if isinstance(entry.normalisation, FixedScale):
        return Scale(entry.normalisation.mean, entry.normalisation.std)
    if isinstance(entry.normalisation, RunningScale):
        return Running(entry.normalisation.half_life_images)
    return Scale()


def _remote(
    rewards: Rewards, entry: RewardEntry, store: ImageStore, prepared: bool = False
) -> ServeClient | HttpClient:
    if rewards.backend == "http":
        assert rewards.url is not None
        return HttpClient(rewards.url, entry.name, entry.deadline_s, prepared=prepared)
    # Prepared inputs are each reward's own, so there is no copy to share.
    return ServeClient(entry.name, entry.deadline_s, ImageStore() if prepared else store, prepared=prepared)


def _rule(name: str, client: ServeClient | HttpClient) -> Preprocess:
    """Return a reward's preprocessing, as its service tells it.

    Raises:
        ValueError: it does not.
    """
    rule = client.describe()["rule"]
    if rule is None:
        remedy = "set it to service"
        raise ValueError(
            f"rewards.services.{name}.preprocess_at = 'client': the service does not tell its rule; {remedy}"
        )
    return Preprocess(**rule)


def _check_http(rewards: Rewards) -> None:
    absent = []
    for entry in rewards.services:
        try:
            _remote(rewards, entry, ImageStore()).describe()
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
