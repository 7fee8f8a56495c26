"""Who manages which rewards of a cluster: a name that is held as long as the driver's process lives."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

NAMESPACE = "slingstone-rewards"
"""Of Ray, where the names are."""
PATIENCE_S = 10.0
"""How long a process that has just ended may still hold its name."""


class Lease:
    """An actor that Ray ends with the process that made it."""


@contextmanager
def held(owner: str) -> Iterator[None]:
    """Hold the rewards of an owner.

    Raises:
        ValueError: another process holds them.
    """
    here: Any = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(num_cpus=0, scheduling_strategy=here)(Lease).options(name=owner, namespace=NAMESPACE)
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            lease: Any = actor.remote()
            break
        except ValueError as error:  # the name is taken
            if time.monotonic() > deadline:
                remedy = "wait until it has ended, or give this run another name"
                raise ValueError(f"rewards: another process manages those of {owner}; {remedy}") from error
            time.sleep(0.2)
    try:
        yield
    finally:
        ray.kill(lease)


def is_held(owner: str) -> bool:
    """Tell whether a living process holds the rewards of an owner."""
    try:
        ray.get_actor(owner, NAMESPACE)
    except ValueError:
        return False
    return True
