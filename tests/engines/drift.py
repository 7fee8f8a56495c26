"""Weights whose every step is known: how much of what they learn reaches the average."""

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from slingstone.config import Optimizer, Runtime
from slingstone.engines.engine import build_engine
from slingstone.step.ema import ExponentialMovingAverage
from tests.whole import whole

LR = 5e-7
BATCH, HALF_LIFE = 8, 160.0


class Slope(nn.Module):
    """Its gradient is one everywhere and always, so that Adam takes steps of exactly its learning rate."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        # Of no even size, and in a range whose bf16 neighbours lie 2,000 to 8,000 steps apart.
        self.one, self.other = nn.Parameter(0.1 + torch.rand(5)), nn.Parameter(0.1 + torch.rand(7, 3))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.one).sum() + (x * self.other.sum()).sum() / len(x)


def closed_form(start: Tensor, steps: int) -> Tensor:
    """Return the average after steps of `LR`, in fp64."""
    keep = 0.5 ** (BATCH / HALF_LIFE)
    taken = torch.arange(1, steps + 1, dtype=torch.float64)
    return start.double() - LR * ((1 - keep) * keep ** (steps - taken) * taken).sum()


def missed(runtime: Runtime, steps: int) -> dict[str, float]:
    """Return, of the weight that is worst off, the share of what the average should learn by which it is off.

    And the same of the masters; and how far both are from the fp32 weights before the first step.
    """
    first = {name: weight.detach().clone() for name, weight in Slope().named_parameters()}
    adam = Optimizer(kind="adamw", lr=LR, weight_decay=0.0, warmup_steps=0)
    engine = build_engine(Slope(), adam, runtime, 1e9)
    average = ExponentialMovingAverage(engine.masters, HALF_LIFE)
    start = whole(engine.module, average.fragments)
    x = torch.ones(5, dtype=next(engine.module.parameters()).dtype)
    for _ in range(steps):
        engine.backward(engine(x))
        engine.step()
        average.update(BATCH)

    def off(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
        errors = [(found[name] - expected[name]).abs() / (expected[name] - first[name]).abs() for name in first]
        return max(float(error.max()) for error in errors)

    return {
        "start": max(float((start[name] - weight).abs().max()) for name, weight in first.items()),
        "average": off(
            whole(engine.module, average.fragments),
            {name: closed_form(weight, steps) for name, weight in first.items()},
        ),
        "masters": off(
            whole(engine.module, engine.masters()), {name: w.double() - steps * LR for name, w in first.items()}
        ),
        "held": sum(len(values) for _, values in average.fragments.values()),
    }


def thousand(_directory: Path, runtime: Runtime) -> dict[str, object]:
    """Return what is missed after 1,000 steps; a collective."""
    dist.barrier()
    return {"missed": missed(runtime, 1000)}
