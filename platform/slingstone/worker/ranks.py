"""What the ranks of a job agree on at a step."""

import torch
import torch.distributed as dist


def mean_over_ranks(metrics: dict[str, float]) -> dict[str, float]:
    """Average each metric over the ranks; counts of dropped samples are added. A collective: keys must agree."""
    names = sorted(metrics)
    values = torch.tensor([metrics[name] for name in names], dtype=torch.float64)
    dist.all_reduce(values)
    world = dist.get_world_size()
    return {
        name: value if name.startswith("nonfinite/") else value / world
        for name, value in zip(names, values.tolist(), strict=True)
    }


def any_rank(flag: bool) -> bool:
    """Tell whether it holds on some rank; a collective."""
    total = torch.tensor(float(flag))
    dist.all_reduce(total)
    return bool(total)


def crossed(every: int, before: int, after: int) -> bool:
    """Tell whether a multiple of `every` lies between two positions, or at the second."""
    return before // every < after // every
