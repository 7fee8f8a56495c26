"""Which nodes of a cluster train and which serve rewards."""

from typing import Annotated, Literal

from pydantic import Field

from reward_services.spec import NodeLabel
from slingstone.config.tree import Section


class Placement(Section):
    """Node groups by their labels, as `ray start --labels slingstone/group=trainer` and KubeRay's groups give them.

    Null is any node with room. A group may do both: then ranks and replicas share its nodes, and with
    `trainer_gpu_share` below 1 and fractions in the rewards' `num_gpus` even its GPUs.
    """

    trainer: NodeLabel | None = None
    """`label=value` of the nodes that train; in an evaluation, of those that draw."""
    rewards: NodeLabel | None = None
    """`label=value` of the nodes that serve managed rewards; `node_label` of a reward overrules it."""
    trainer_gpu_share: Annotated[float, Field(gt=0.5, le=1)] = 1.0
    """Part of its GPU that a worker reserves. More than half, so that no two share one; rewards may take the rest."""
    strategy: Literal["pack", "spread"] = "pack"
    """`pack` fills a node with workers before the next one, `spread` deals them out to as many nodes as there are."""
