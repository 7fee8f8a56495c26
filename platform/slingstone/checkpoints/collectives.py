"""What all ranks must do alike: one looks for all of them, and all fail if one does."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch.distributed as dist

from slingstone.engines.shards import DamagedCheckpoint

Found = TypeVar("Found")


def from_rank_0(look: Callable[[], Found]) -> Found:
    """Return on every rank what `look` finds on rank 0; a collective.

    A shared file system may show another node an older listing, and ranks that then went different ways would wait for
    each other for ever.

    Raises:
        ValueError: on all ranks, what `look` raised on rank 0.
    """
    found: list[Any] = [None]
    with together():
        if dist.get_rank() == 0:
            found = [look()]
    dist.broadcast_object_list(found, src=0)
    return found[0]


@contextmanager
def together() -> Iterator[None]:
    """Let every rank fail if one does: a rank that went on alone would wait for the others for ever."""
    own: Exception | None = None
    try:
        yield
    except Exception as error:
        own = error
    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, None if own is None else (isinstance(own, DamagedCheckpoint), str(own)))
    if own is not None and not isinstance(own, DamagedCheckpoint):
        raise own
    for damaged, message in filter(None, told):
        raise (DamagedCheckpoint if damaged else ValueError)(message) from own
