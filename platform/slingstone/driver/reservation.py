"""Keeps the trainers' part of each GPU free while the rewards look for theirs."""

from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.exceptions import GetTimeoutError
from ray.util.placement_group import placement_group, remove_placement_group

from reward_services.spec import label_selector
from slingstone.config import Experiment
from slingstone.driver.placement import worker_resources

TIMEOUT_S = 60.0


@contextmanager
def held_for_trainers(experiment: Experiment, workers: int | None = None) -> Iterator[None]:
    """Hold what the workers will reserve, where they share GPUs with the rewards.

    Ray fills one GPU with replicas before the next: without this, replicas of a fifth of a GPU each would gather on
    one, and a worker that needs the rest of it would wait for ever.

    Args:
        experiment: whose workers.
        workers: how many to hold room for; those of one run by default.

    Raises:
        ValueError: the cluster has no such room now.
    """
    if experiment.placement.trainer_gpu_share == 1:
        yield
        return
    count, selector = workers or experiment.runtime.num_workers, label_selector(experiment.placement.trainer)
    held = placement_group(
        [worker_resources(experiment)] * count,
        strategy=experiment.placement.strategy.upper(),
        bundle_label_selector=[selector] * count,
    )
    try:
        ray.get(held.ready(), timeout=TIMEOUT_S)
        yield
    except GetTimeoutError as error:
        raise ValueError(
            f"placement.trainer_gpu_share = {experiment.placement.trainer_gpu_share}: {count} workers found no room in"
            f" {TIMEOUT_S:g} s; wait until other runs have ended, or take fewer workers"
        ) from error
    finally:
        remove_placement_group(held)
