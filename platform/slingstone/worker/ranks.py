"""What the ranks of a job agree on at a step."""

import math

import torch
import torch.distributed as dist


def mean_over_ranks(metrics: dict[str, float]) -> dict[str, float]:
    """Average each metric over the ranks that have one; counts of dropped samples are added.

    A collective: keys must agree. A mean that no rank has is NaN, as each rank's was.
    """
    names = sorted(metrics)
    values = torch.tensor([metrics[name] for name in names], dtype=torch.float64)
    sums = torch.stack([values.nan_to_num(0.0, math.inf, -math.inf), (~values.isnan()).double()])
    dist.all_reduce(sums)
    return {
        name: total if name.startswith("nonfinite/") else total / ranks if ranks else math.nan
        for name, total, ranks in zip(names, *sums.tolist(), strict=True)
    }


def any_rank(flag: bool) -> bool:
    """Tell whether it holds on some rank; a collective."""
    total = torch.tensor(float(flag))
    dist.all_reduce(total)
    return bool(total)


def crossed(every: int, before: int, after: int) -> bool:
    """Tell whether a multiple of `every` lies between two positions, or at the second."""
    return before // every < after // every
