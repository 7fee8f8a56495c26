"""On which nodes a run's workers and rewards land: what Ray is told, and what no cluster of such nodes can hold.

Imports neither torch nor ray. Nodes are given as `ray.nodes` gives them.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from reward_services.spec import label_selector
from slingstone.config import Experiment, Placement, RewardEntry, Rewards

Nodes = Sequence[Mapping[str, Any]]


def scaling(experiment: Experiment) -> dict[str, Any]:
    """Return the arguments of Ray Train's ScalingConfig."""
    runtime, placement = experiment.runtime, experiment.placement
    selector = label_selector(placement.trainer)
    return {
        "num_workers": runtime.num_workers,
        "use_gpu": runtime.use_gpu,
        "resources_per_worker": worker_resources(experiment),
        "placement_strategy": placement.strategy.upper(),
        **({"label_selector": selector} if selector else {}),
    }


def worker_resources(experiment: Experiment) -> dict[str, int | float]:
    """Return what one worker reserves."""
    return {
        "CPU": experiment.runtime.threads_per_worker,
        "GPU": experiment.placement.trainer_gpu_share if experiment.runtime.use_gpu else 0,
    }


def placed(rewards: Rewards, placement: Placement) -> Rewards:
    """Return the rewards with the label of their nodes: their own, else the placement's."""
    services = tuple(
        entry.model_copy(update={"node_label": entry.node_label or placement.rewards}) for entry in rewards.services
    )
    return rewards.model_copy(update={"services": services})


def managed(rewards: Rewards, placement: Placement) -> tuple[RewardEntry, ...]:
    """Return the rewards that the run deploys, with the label of their nodes."""
    if (rewards.lifecycle, rewards.backend) != ("managed", "serve"):
        return ()
    return placed(rewards, placement).services


def check(experiment: Experiment, nodes: Nodes) -> None:
    """Refuse a placement that the cluster's nodes can never give.

    Raises:
        ValueError: naming the label that no node carries, or what its nodes hold too little of.
    """
    check_groups(experiment.placement, experiment.rewards, nodes)
    placement, runtime = experiment.placement, experiment.runtime
    group = carrying(placement.trainer, nodes)
    room, resources = slots(experiment, nodes), worker_resources(experiment)
    if (placement.trainer or placement.trainer_gpu_share < 1) and room < runtime.num_workers:
        named = "all nodes" if placement.trainer is None else f"the {len(group)} nodes of {placement.trainer}"
        asked = " and ".join(f"{amount:g} {kind}s" for kind, amount in resources.items() if amount)
        raise ValueError(
            f"runtime.num_workers = {runtime.num_workers}: {named} hold {room} workers of {asked} each;"
            " take fewer workers, or start more of these nodes"
        )
    for label, services in _by_label(managed(experiment.rewards, placement)).items():
        shared = runtime.num_workers if label == placement.trainer else 0
        for kind in ("CPU", "GPU"):
            needed = shared * resources[kind] + sum(_asked(entry, kind) for entry in services)
            has = sum(node["Resources"].get(kind, 0.0) for node in carrying(label, nodes))
            if needed > has + 1e-9:
                workers = f"{shared} workers and " if shared else ""
                names = ", ".join(entry.name for entry in services)
                raise ValueError(
                    f"placement: {workers}the rewards {names} need {needed:g} {kind}s on nodes of {label},"
                    f" which have {has:g}; start more of these nodes, or lower num_replicas or num_{kind.lower()}s"
                )


def check_groups(placement: Placement, rewards: Rewards, nodes: Nodes) -> None:
    """Refuse a label that no node carries.

    Raises:
        ValueError: naming each such key, and what the nodes carry.
    """
    asked = {"placement.trainer": placement.trainer}
    for entry in managed(rewards, placement):
        own = placement.rewards is None or entry.node_label != placement.rewards
        asked[f"rewards.services.{entry.name}.node_label" if own else "placement.rewards"] = entry.node_label
    absent = {key: label for key, label in asked.items() if label is not None and not carrying(label, nodes)}
    if not absent:
        return
    lines = []
    for key, label in absent.items():
        name = label.partition("=")[0]
        values = Counter(node["Labels"].get(name, "not at all") for node in _alive(nodes))
        found = ", ".join(f"{value} ({count})" for value, count in sorted(values.items()))
        lines.append(
            f"{key} = {label!r}: no node carries this label; {name} is set on the cluster's nodes as: {found};"
            f" start nodes with `ray start --labels {label}`, or set {key} to null for any node"
        )
    raise ValueError("\n".join(lines))


def slots(experiment: Experiment, nodes: Nodes) -> int:
    """Return how many workers the nodes of the trainer's group hold when nothing else runs there."""
    resources = {kind: amount for kind, amount in worker_resources(experiment).items() if amount}
    return sum(
        min(_held(node["Resources"].get(kind, 0.0), kind, amount) for kind, amount in resources.items())
        for node in carrying(experiment.placement.trainer, nodes)
    )


def carrying(label: str | None, nodes: Nodes) -> Nodes:
    """Return the living nodes that carry a label; all for None."""
    wanted = label_selector(label).items()
    return [node for node in _alive(nodes) if wanted <= node["Labels"].items()]


def _held(has: float, kind: str, amount: int | float) -> int:
    """Return how many workers' parts a node's resource holds; a GPU holds one, since each takes more than half."""
    return int(has + 1e-9) if kind == "GPU" else int((has + 1e-9) // amount)


def _alive(nodes: Nodes) -> Nodes:
    return [node for node in nodes if node["Alive"]]


def _asked(entry: RewardEntry, kind: str) -> int | float:
    return entry.num_replicas * (entry.num_cpus if kind == "CPU" else entry.num_gpus)


def _by_label(services: Iterable[RewardEntry]) -> dict[str, list[RewardEntry]]:
    grouped: dict[str, list[RewardEntry]] = {}
    for entry in services:
        if entry.node_label is not None:
            grouped.setdefault(entry.node_label, []).append(entry)
    return grouped
