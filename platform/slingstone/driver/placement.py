"""On which nodes a run's workers and rewards land: what Ray is told, and what no cluster of such nodes can hold.

Imports neither torch nor ray. Nodes are given as `ray.nodes` gives them.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from reward_services.spec import label_selector
from slingstone.config import Placement, RewardEntry, Rewards, TrainingJob
from slingstone.driver.packing import Actor, Room, fits

Nodes = Sequence[Mapping[str, Any]]
Amounts = Mapping[str, int | float]


def scaling(experiment: TrainingJob) -> dict[str, Any]:
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


def worker_resources(experiment: TrainingJob) -> dict[str, int | float]:
    """Return what one worker reserves."""
    return {
        "CPU": experiment.runtime.threads_per_worker,
        "GPU": experiment.placement.trainer_gpu_share if experiment.runtime.use_gpu else 0,
    }


def managed(rewards: Rewards, placement: Placement) -> tuple[RewardEntry, ...]:
    """Return the rewards that the run deploys, each with the label of its nodes: its own, else the placement's."""
    if (rewards.lifecycle, rewards.backend) != ("managed", "serve"):
        return ()
    return tuple(
        entry.model_copy(update={"node_label": entry.node_label or placement.rewards}) for entry in rewards.services
    )


def needs(workers: int, each: Amounts, services: Iterable[RewardEntry]) -> Amounts:
    """Return what so many workers and the replicas of these rewards reserve together."""
    total = {kind: workers * each[kind] for kind in ("CPU", "GPU")}
    for entry in services:
        total["CPU"] += entry.num_replicas * entry.num_cpus
        total["GPU"] += entry.num_replicas * entry.num_gpus
    return total


def check(experiment: TrainingJob, nodes: Nodes) -> None:
    """Refuse a run that the cluster's nodes can never hold where it is to be placed.

    Raises:
        ValueError: naming the label that no node carries, or what the nodes hold too little of.
    """
    placement, workers, each = experiment.placement, experiment.runtime.num_workers, worker_resources(experiment)
    deployed = managed(experiment.rewards, placement)
    check_total("runtime.num_workers", workers, each, deployed, nodes)
    check_labels(placement, deployed, nodes)
    room = slots(experiment, nodes)
    if (placement.trainer or placement.trainer_gpu_share < 1) and room < workers:
        group = len(carrying(placement.trainer, nodes))
        named = "all nodes" if placement.trainer is None else f"the {group} nodes of {placement.trainer}"
        wanted = " and ".join(f"{amount:g} {kind}s" for kind, amount in each.items() if amount)
        raise ValueError(
            f"runtime.num_workers = {workers}: {named} hold {room} workers of {wanted} each;"
            " take fewer workers, or start more of these nodes"
        )
    for label in dict.fromkeys(entry.node_label for entry in deployed if entry.node_label is not None):
        services = [entry for entry in deployed if entry.node_label == label]
        beside = workers if label == placement.trainer else 0
        for kind, needed, has in _shortages(needs(beside, each, services), carrying(label, nodes)):
            names = ", ".join(entry.name for entry in services)
            raise ValueError(
                f"placement: {f'{beside} workers and ' if beside else ''}the rewards {names} need {needed:g} {kind}s"
                f" on nodes of {label}, which have {has:g}; start more of these nodes, or lower num_replicas or"
                f" num_{kind.lower()}s"
            )
    check_packing(workers, each, placement.trainer, deployed, nodes)


def check_packing(
    workers: int, each: Amounts, trainer: str | None, deployed: Sequence[RewardEntry], nodes: Nodes
) -> None:
    """Refuse workers and rewards that no division among nodes and GPUs can hold, though all together are large enough.

    Raises:
        ValueError: naming what each needs, and what the nodes have.
    """
    alive = carrying(None, nodes)
    rooms = [Room(node["Resources"].get("CPU", 0.0), (1.0,) * int(node["Resources"].get("GPU", 0.0))) for node in alive]

    def actors(count: int, cpu: int | float, gpu: int | float, label: str | None) -> list[Actor]:
        where = carrying(label, nodes)
        return [Actor(cpu, gpu, frozenset(i for i, node in enumerate(alive) if node in where))] * count

    waiting = actors(workers, each["CPU"], each["GPU"], trainer)
    for entry in deployed:
        waiting += actors(entry.num_replicas, entry.num_cpus, entry.num_gpus, entry.node_label)
    if fits(waiting, rooms):
        return
    lines = [f"{workers} workers of {_amounts(each['CPU'], each['GPU'])}"]
    lines += [
        f"{entry.num_replicas} of {entry.name} of {_amounts(entry.num_cpus, entry.num_gpus)}" for entry in deployed
    ]
    shapes = Counter(_amounts(room.cpu, len(room.gpus)) for room in rooms)
    raise ValueError(
        f"placement: {', '.join(lines)} each find no room together on nodes with"
        f" {', '.join(f'{shape} ({count})' for shape, count in shapes.items())}: each lies on one node, and a part of a"
        " GPU on one GPU; lower num_gpus, num_cpus or num_replicas of rewards, or take fewer workers or more nodes"
    )


def _amounts(cpu: int | float, gpu: int | float) -> str:
    return f"{cpu:g} CPUs" + (f" and {gpu:g} GPUs" if gpu else "")


def check_total(field: str, workers: int, each: Amounts, deployed: Sequence[RewardEntry], nodes: Nodes) -> None:
    """Refuse workers and rewards for which all nodes together are too small.

    Raises:
        ValueError: naming `field`, the key that says how many workers there are.
    """
    for kind, needed, has in _shortages(needs(workers, each, deployed), carrying(None, nodes)):
        beside = f" and {len(deployed)} managed rewards" if deployed else ""
        raise ValueError(
            f"{field} = {workers}: {workers} workers{beside} need {needed:g} {kind}s, the cluster has"
            f" {has:g}; take fewer workers or threads_per_worker, or a larger cluster"
        )


def check_labels(placement: Placement, deployed: Sequence[RewardEntry], nodes: Nodes) -> None:
    """Refuse a label that no node carries.

    Raises:
        ValueError: naming each such key, and what the nodes carry.
    """
    labels = {"placement.trainer": placement.trainer}
    for entry in deployed:
        own = placement.rewards is None or entry.node_label != placement.rewards
        labels[f"rewards.services.{entry.name}.node_label" if own else "placement.rewards"] = entry.node_label
    lines = []
    for key, label in labels.items():
        if label is None or carrying(label, nodes):
            continue
        name = label.partition("=")[0]
        values = Counter(node["Labels"].get(name, "not at all") for node in carrying(None, nodes))
        found = ", ".join(f"{value} ({count})" for value, count in sorted(values.items()))
        lines.append(
            f"{key} = {label!r}: no node carries this label; {name} is set on the cluster's nodes as: {found};"
            f" start nodes with `ray start --labels {label}`, or set {key} to null for any node"
        )
    if lines:
        raise ValueError("\n".join(lines))


def slots(experiment: TrainingJob, nodes: Nodes) -> int:
    """Return how many workers the nodes of the trainer's group hold when nothing else runs there."""
    each = {kind: amount for kind, amount in worker_resources(experiment).items() if amount}
    return sum(
        # Each takes more than half of a GPU, so that a GPU holds one.
        min(int((node["Resources"].get(kind, 0.0) + 1e-9) // (1 if kind == "GPU" else each[kind])) for kind in each)
        for node in carrying(experiment.placement.trainer, nodes)
    )


def carrying(label: str | None, nodes: Nodes) -> Nodes:
    """Return the living nodes that carry a label; all for None."""
    wanted = label_selector(label).items()
    return [node for node in nodes if node["Alive"] and wanted <= node["Labels"].items()]


def total(nodes: Nodes) -> Amounts:
    """Return the CPUs and GPUs of these nodes together."""
    return {kind: sum(node["Resources"].get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU")}


def _shortages(needed: Amounts, nodes: Nodes) -> Iterator[tuple[str, int | float, int | float]]:
    """Yield each kind of resource of which these nodes have too little, what is needed and what they have."""
    for kind, has in total(nodes).items():
        if needed[kind] > has + 1e-9:
            yield kind, needed[kind], has
