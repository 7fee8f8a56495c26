"""Has the reward services run: deploys them under names of this run's own, or checks those of others."""

import logging
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import ray
from ray import serve
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, ReplicaState

from reward_services.client import ImageStore
from reward_services.contents import digest
from reward_services.deployment import build
from reward_services.identity import differences
from reward_services.protocol import RewardError
from slingstone.config import Experiment, Placement, RewardEntry, Rewards
from slingstone.driver import cluster, lease
from slingstone.driver.placement import managed
from slingstone.plan.work import trained_on
from slingstone.worker.rewards import remote_client, without_gradient

_OWNED = re.compile(r"reward-[a-z0-9_-]+\.(.+)")
"""Names of managed applications; that of a reward has no dot."""
POLL_S = 0.2


@contextmanager
def running(
    rewards: Rewards, placement: Placement, directory: Path, starting: AbstractContextManager[None] | None = None
) -> Iterator[Rewards]:
    """Have the services run: deployed here and deleted at the end, or checked if they are external.

    Args:
        rewards: which.
        placement: on which nodes.
        directory: of whoever asks; managed services carry its name, so that no other run replaces or removes them.
        starting: entered while they are deployed and left as soon as they run.

    Yields:
        The rewards as workers find them.

    Raises:
        ValueError: naming every external service that does not run or is another reward, or the services that did not
            start in time and what they wait for, or that another process manages those of this directory.
    """
    own = f"{directory.name}-{digest(str(directory))}"
    deployed = tuple(_owned(entry, own) for entry in managed(rewards, placement))
    if not deployed:
        if rewards.services and rewards.backend != "in_process":
            check(rewards)
        yield rewards
        return
    logging.getLogger("ray.serve").setLevel(logging.CRITICAL)  # its news go to its own log files
    with cluster.starting("Ray Serve did not start"):
        serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR"})
    with lease.held(own):
        names = {entry.served_as for entry in deployed}
        remove_abandoned(own, names)
        targets = [serve.RunTarget(build(entry.spec), entry.served_as, None) for entry in deployed]
        try:
            try:
                with starting or nullcontext():
                    serve.run_many(targets, wait_for_applications_running=False)
                    _await(rewards, deployed)
            except RuntimeError as error:
                raise ValueError(f"rewards.services: {_reason(deployed) or error}") from error
            services = tuple(_owned(entry, own) for entry in rewards.services)
            yield rewards.model_copy(update={"lifecycle": "external", "services": services})
        finally:
            for name in names:
                serve.delete(name, _blocking=False)


def _await(rewards: Rewards, deployed: Sequence[RewardEntry]) -> None:
    """Wait until all services run."""
    end = time.monotonic() + rewards.start_timeout_s
    while True:
        applications = serve.status().applications
        found = {entry: applications[entry.served_as] for entry in deployed}
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
    """Refuse external services that do not run, or are other rewards than those of the configuration.

    Raises:
        ValueError: naming each.
    """
    over_http = rewards.backend == "http"
    applications = {} if over_http else serve.status().applications
    absent, others = [], []
    for entry in rewards.services:
        if not over_http:
            found = applications.get(entry.served_as)
            status = found.status.value if found is not None else "not deployed"
            if status != ApplicationStatus.RUNNING.value:
                absent.append(f"{entry.name} (application {entry.served_as!r} is {status})")
                continue
        try:
            described = remote_client(rewards, entry, ImageStore()).describe()
        except RewardError as error:
            absent.append(str(error))
            continue
        others += [f"{entry.name}: {found}" for found in differences(entry.spec, described)]
    if absent and over_http:
        raise ValueError(f"rewards.url = {rewards.url!r}: {'; '.join(absent)}")
    if absent:
        remedy = "deploy them, or set rewards.lifecycle: managed"
        raise ValueError(f"rewards.services: external rewards do not run: {', '.join(absent)}; {remedy}")
    if others:
        remedy = "configure what is served, or deploy what is configured"
        raise ValueError(f"rewards.services: other rewards are served: {'; '.join(others)}; {remedy}")


def check_gradients(experiment: Experiment, served: Rewards) -> None:
    """Refuse to train on rewards that have no gradient.

    Args:
        experiment: says which are trained on.
        served: services that run.

    Raises:
        ValueError: naming each.
    """
    if served.backend == "in_process":
        return  # each worker looks at the models that it loads
    names = {entry.name for entry in trained_on(experiment)}
    asked = [entry for entry in served.services if entry.name in names]
    described = {entry: remote_client(served, entry, ImageStore()).describe() for entry in asked}
    if without := [entry for entry, told in described.items() if not told.get("differentiable", True)]:
        raise ValueError("\n".join(without_gradient(entry) for entry in without))


def shared(rewards: Rewards, served: Rewards) -> Rewards:
    """Return the rewards of one of several runs as they find the services that all of them share."""
    if served.backend == "in_process":
        return rewards
    names = {entry.name: entry.application for entry in served.services}
    services = tuple(entry.model_copy(update={"application": names[entry.name]}) for entry in rewards.services)
    return rewards.model_copy(update={"lifecycle": "external", "services": services})


def _owned(entry: RewardEntry, owner: str) -> RewardEntry:
    # This process has joined the cluster: whether it may be an open one is decided.
    return entry.model_copy(update={"application": f"{entry.app_name}.{owner}", "open_cluster": True})


def remove_abandoned(own: str, wanted: set[str]) -> None:
    """Take down the services that processes have left which were killed.

    Args:
        own: owner whose services are his to take down, too.
        wanted: names of the applications that stay.
    """
    for name in serve.status().applications:
        if (found := _OWNED.fullmatch(name)) is None or name in wanted:
            continue
        if found[1] == own or not lease.is_held(found[1]):
            serve.delete(name, _blocking=False)


def _reason(deployed: tuple[RewardEntry, ...]) -> str:
    """Return what the replicas said when they did not start: the last line of each reward's own message."""
    applications = serve.status().applications
    said = []
    for entry in deployed:
        deployments = applications[entry.served_as].deployments if entry.served_as in applications else {}
        for deployment in deployments.values():
            if deployment.status != "HEALTHY" and (message := deployment.message.strip()):
                said.append(f"{entry.name} did not start: {message.splitlines()[-1].strip()}")
    return "; ".join(said)
