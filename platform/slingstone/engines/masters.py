"""Unrounded weights in fragments, a part for each rank: cut, and joined to whole weights again."""

from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from slingstone.step.ema import Fragment


def part_of_rank(weights: Iterable[tuple[str, Tensor]]) -> dict[str, Fragment]:
    """Return this rank's part of weights that every rank holds whole: equal stretches of all of them in a row."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    flat = [(name, weight.detach().flatten()) for name, weight in weights]
    length = -(-sum(len(values) for _, values in flat) // world)
    part, passed = {}, 0
    for name, values in flat:
        start = max(0, rank * length - passed)
        stop = min(len(values), (rank + 1) * length - passed)
        if start < stop:
            part[name] = Fragment(start, values[start:stop])
        passed += len(values)
    return part


def fill(weights: Iterable[tuple[str, Tensor]], part: Mapping[str, Fragment]) -> None:
    """Write whole weights into one rank's fragments, in place."""
    for name, weight in weights:
        if name in part:
            start, values = part[name]
            values.copy_(weight.flatten()[start : start + len(values)])


@torch.no_grad()
def gather(part: Mapping[str, Fragment], weights: Mapping[str, Tensor]) -> None:
    """Write the fragments of all ranks into whole weights, in place; a collective.

    Args:
        part: this rank's fragments.
        weights: exactly those of which the ranks have fragments, on the device where ranks can reach each other.
    """
    held = torch.tensor(sum(len(values) for _, values in part.values()), dtype=torch.int64)
    _sum(held)
    assert part.keys() <= weights.keys()
    assert int(held) == sum(weight.numel() for weight in weights.values())
    for name, weight in weights.items():
        flat = torch.zeros(weight.numel(), dtype=weight.dtype, device=weight.device)
        if name in part:
            start, values = part[name]
            flat[start : start + len(values)] = values
        _sum(flat)  # the other ranks' stretches are zero here
        weight.copy_(flat.view_as(weight))


def _sum(tensor: Tensor) -> None:
    if dist.is_initialized():
        dist.all_reduce(tensor)
