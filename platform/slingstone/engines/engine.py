"""What an engine offers beyond `trainer.Engine`, to save and load shard by shard; and the engine in plain torch."""

import math
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from slingstone.config import Optimizer, Runtime
from slingstone.engines.masters import part_of_rank
from slingstone.engines.shards import Files, copied, read
from slingstone.step.ema import Fragment
from slingstone.step.trainer import Engine


class ShardedEngine(Engine, Protocol):
    """An engine whose weights and optimizer may be spread over ranks. Every method here is a collective."""

    def snapshot(self) -> Files:
        """Return copies, in host memory, of this rank's part of weights, optimizer and learning-rate position."""
        ...

    def load(self, directory: Path) -> None:
        """Restore what `snapshot` returned on as many ranks, and what was written to that directory."""
        ...


def build_engine(module: nn.Module, optimizer: Optimizer, runtime: Runtime, max_grad_norm: float) -> ShardedEngine:
    """Return the engine that the configuration asks for, around a module that it takes over."""
    if runtime.engine == "torch":
        return TorchEngine(module, optimizer, runtime.precision, max_grad_norm)
    # DeepSpeed takes seconds to import.
    from slingstone.engines.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine(module, optimizer, runtime, max_grad_norm)


class _Schedule:
    """Factor of the learning rate: linear from `1 / steps` to 1, then 1 or a cosine down to 0 at `end`.

    A class, so that a scheduler can be pickled.
    """

    def __init__(self, steps: int, end: int | None) -> None:
        self.steps, self.end = steps, end

    def __call__(self, step: int) -> float:
        if step < self.steps:
            return min(1.0, (step + 1) / self.steps)
        if self.end is None:
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - self.steps) / max(1, self.end - self.steps))))


def torch_optimizer(
    weights: list[Tensor], optimizer: Optimizer, fused: bool | None = None
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """Return Adam over the weights, in one kernel if `fused`, and the schedule of its learning rate."""
    kind = torch.optim.AdamW if optimizer.kind == "adamw" else torch.optim.Adam
    numbers: Any = optimizer.model_dump(include={"lr", "betas", "eps", "weight_decay"})
    built = kind(weights, **numbers, fused=fused)
    return built, torch.optim.lr_scheduler.LambdaLR(built, _Schedule(optimizer.warmup_steps, optimizer.cosine_steps))


def _average_over_ranks(gradients: list[Tensor]) -> None:
    """Replace gradients by their mean over ranks, in one message."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


class TorchEngine:
    """Plain data parallelism: the whole optimizer on every rank. In bf16 it steps fp32 copies of the weights."""

    def __init__(self, module: nn.Module, optimizer: Optimizer, precision: str, max_grad_norm: float) -> None:
        rounded = precision == "bf16"
        self._masters: dict[str, Tensor] = {
            name: weight.detach().float().clone() if rounded else weight for name, weight in trained(module).items()
        }
        self.module = module.to(torch.bfloat16) if rounded else module
        self._weights = trained(self.module)
        masters = list(self._masters.values())
        self.optimizer, self.schedule = torch_optimizer(masters, optimizer, fused=masters[0].is_cuda or None)
        self.max_grad_norm = max_grad_norm

    def __call__(self, *args: Any) -> Tensor:
        """Run the module."""
        return self.module(*args)

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients, in fp32."""
        loss.backward()
        for name, master in self._copies().items():
            weight = self._weights[name]
            if weight.grad is not None:
                gradient = weight.grad.float()
                master.grad = gradient if master.grad is None else master.grad + gradient
                weight.grad = None

    def step(self) -> float:
        """Average over ranks, clip, update; return the norm before clipping."""
        masters = list(self._masters.values())
        for master in masters:
            master.grad = torch.zeros_like(master) if master.grad is None else master.grad
        _average_over_ranks([master.grad for master in masters if master.grad is not None])
        norm = nn.utils.clip_grad_norm_(masters, self.max_grad_norm)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, master in self._copies().items():
                self._weights[name].copy_(master)
        return float(norm)

    def masters(self) -> dict[str, Fragment]:
        """Return this rank's part of what all ranks hold."""
        return part_of_rank(self._masters.items())

    def _copies(self) -> dict[str, Tensor]:
        """Return the fp32 copies by name; in fp32 the weights are their own masters."""
        return {name: master for name, master in self._masters.items() if master is not self._weights[name]}

    def snapshot(self) -> Files:
        """Return one file, on rank 0: every rank holds the same."""
        if dist.is_initialized() and dist.get_rank() > 0:
            return {}
        state = {"module": self.module.state_dict(), "masters": self._copies()}
        state |= {"optimizer": self.optimizer.state_dict(), "schedule": self.schedule.last_epoch}
        return {"torch_engine.pt": copied(state)}

    def load(self, directory: Path) -> None:
        """Read the file on every rank."""
        state = read(directory / "torch_engine.pt")
        self.module.load_state_dict(state["module"])
        with torch.no_grad():
            for name, master in self._copies().items():
                master.copy_(state["masters"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.last_epoch = state["schedule"]


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights that are trained, by name."""
    return {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
