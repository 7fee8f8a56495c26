"""Engines behind `trainer.Engine`: DeepSpeed at any ZeRO stage, and plain torch; both save and load shard by shard."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from slingstone.config import Optimizer, Runtime
from slingstone.engines.shards import Files, HostMemory, copied, read
from slingstone.step.trainer import Engine


class ShardedEngine(Engine, Protocol):
    """An engine whose weights and optimizer may be spread over ranks. Every method here is a collective."""

    sharded: bool
    """Whether `named_parameters` yields this rank's shards rather than whole weights."""

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Yield each trained weight, or this rank's flat shard of it; writing into the tensor changes the weight."""
        ...

    def full_weights(self) -> dict[str, Tensor]:
        """Return the whole state dict on every rank, copied to the CPU."""
        ...

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
    return DeepSpeedEngine(module, optimizer, runtime, max_grad_norm)


class _WarmUp:
    """Factor of the learning rate: linear from `1 / steps` to 1. A class, so that a scheduler can be pickled."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __call__(self, step: int) -> float:
        return min(1.0, (step + 1) / self.steps) if self.steps else 1.0


def _torch_optimizer(
    weights: list[Tensor], optimizer: Optimizer
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    kind = torch.optim.AdamW if optimizer.kind == "adamw" else torch.optim.Adam
    built = kind(
        weights, lr=optimizer.lr, betas=optimizer.betas, eps=optimizer.eps, weight_decay=optimizer.weight_decay
    )
    return built, torch.optim.lr_scheduler.LambdaLR(built, _WarmUp(optimizer.warmup_steps))


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

    sharded = False

    def __init__(self, module: nn.Module, optimizer: Optimizer, precision: str, max_grad_norm: float) -> None:
        self.masters = [p.detach().float().clone() if precision == "bf16" else p for p in _trained(module)]
        self.module = module.to(torch.bfloat16) if precision == "bf16" else module
        self.weights = _trained(self.module)
        self.optimizer, self.schedule = _torch_optimizer(self.masters, optimizer)
        self.max_grad_norm = max_grad_norm

    def __call__(self, *args: Any) -> Tensor:
        """Run the module."""
        return self.module(*args)

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients, in fp32."""
        loss.backward()
        for master, weight in zip(self.masters, self.weights, strict=True):
            if master is not weight and weight.grad is not None:
                gradient = weight.grad.float()
                master.grad = gradient if master.grad is None else master.grad + gradient
                weight.grad = None

    def step(self) -> float:
        """Average over ranks, clip, update; return the norm before clipping."""
        for master in self.masters:
            master.grad = torch.zeros_like(master) if master.grad is None else master.grad
        _average_over_ranks([master.grad for master in self.masters if master.grad is not None])
        norm = nn.utils.clip_grad_norm_(self.masters, self.max_grad_norm)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for master, weight in zip(self.masters, self.weights, strict=True):
                if master is not weight:
                    weight.copy_(master)
        return float(norm)

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the whole weights."""
        return ((name, weight) for name, weight in self.module.named_parameters() if weight.requires_grad)

    def full_weights(self) -> dict[str, Tensor]:
        """Return the state dict."""
        return {name: value.detach().cpu().clone() for name, value in self.module.state_dict().items()}

    def _own_masters(self) -> list[Tensor]:
        """Return the fp32 copies; in fp32 the weights are their own masters."""
        return [master for master, weight in zip(self.masters, self.weights, strict=True) if master is not weight]

    def snapshot(self) -> Files:
        """Return one file, on rank 0: every rank holds the same."""
        if _rank() > 0:
            return {}
        state = {"module": self.module.state_dict(), "masters": self._own_masters()}
        state |= {"optimizer": self.optimizer.state_dict(), "schedule": self.schedule.last_epoch}
        return {"torch_engine.pt": copied(state)}

    def load(self, directory: Path) -> None:
        """Read the file on every rank."""
        state = read(directory / "torch_engine.pt")
        self.module.load_state_dict(state["module"])
        with torch.no_grad():
            for master, saved in zip(self._own_masters(), state["masters"], strict=True):
                master.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.last_epoch = state["schedule"]


BUCKET = 500_000_000
"""Most weights whose gradients are reduced together; DeepSpeed sets aside memory for so many."""


def deepspeed_config(runtime: Runtime, max_grad_norm: float, weights: int = BUCKET) -> dict[str, Any]:
    """Render DeepSpeed's dictionary for so many weights; a fresh one each call, since DeepSpeed writes into it."""
    clip_here = runtime.zero_stage > 0  # stage 0 reports no norm: DeepSpeedEngine clips there itself
    zero: dict[str, Any] = {
        "stage": runtime.zero_stage,
        "overlap_comm": runtime.use_gpu and runtime.zero_stage == 2,
        "reduce_bucket_size": min(BUCKET, weights),
        "stage3_param_persistence_threshold": 0,  # a weight kept whole would miss what the EMA swaps in
        "stage3_gather_16bit_weights_on_model_save": False,
    }
    if runtime.offload == "cpu":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": runtime.use_gpu}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "managed_gradient_accumulation": False,  # one step is one boundary, whatever the number of backwards
        "gradient_clipping": max_grad_norm if clip_here else 0.0,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,  # torch's optimizer, also on the host: nothing is compiled at start
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
    if runtime.precision == "bf16":
        config |= {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
    return config


class DeepSpeedEngine:
    """A DeepSpeed engine that steps when told, with torch's Adam. Needs an initialised process group."""

    def __init__(self, module: nn.Module, optimizer: Optimizer, runtime: Runtime, max_grad_norm: float) -> None:
        deepspeed = _import_deepspeed()
        weights = _trained(module)
        built, schedule = _torch_optimizer(list(weights), optimizer)
        self.sharded = runtime.zero_stage == 3
        self._norm: Tensor | None = None
        if runtime.zero_stage == 0:
            built.register_step_pre_hook(lambda base, *_: self._clip(base, max_grad_norm))
        self._engine, *_ = deepspeed.initialize(
            model=module,
            model_parameters=weights,
            optimizer=built,
            lr_scheduler=schedule,
            config=deepspeed_config(runtime, max_grad_norm, sum(weight.numel() for weight in weights)),
        )
        self._host = HostMemory()
        self._engine.checkpoint_engine = self._host
        self.module: nn.Module = self._engine.module

    def _clip(self, optimizer: torch.optim.Optimizer, max_grad_norm: float) -> None:
        self._norm = nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], max_grad_norm)

    def __call__(self, *args: Any) -> Tensor:
        """Run the forward pass with DeepSpeed's hooks."""
        return self._engine(*args)

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients and, from stage 2 on, reduce them to their owners."""
        self._engine.backward(loss, scale_wrt_gas=False)

    def step(self) -> float:
        """Reduce what is left, clip, update; return the norm before clipping."""
        self._engine.step()
        norm = self._engine.get_global_grad_norm() if self._norm is None else self._norm
        return float(norm)

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Yield whole weights, or at stage 3 this rank's shard of each."""
        for name, weight in self.module.named_parameters():
            if not self.sharded:
                yield name, weight
                continue
            shard: Any = weight
            version = shard.ds_tensor._version
            yield name, shard.ds_tensor
            if shard.ds_tensor._version != version and shard.ds_status.name == "AVAILABLE":
                shard.partition(has_been_updated=False)  # drop the gathered copy: it is out of date

    def full_weights(self) -> dict[str, Tensor]:
        """Gather the state dict, one weight at a time."""
        from deepspeed.runtime.zero.partition_parameters import GatheredParameters

        full = {}
        for name, value in self.module.state_dict(keep_vars=True).items():
            with GatheredParameters([value], enabled=self.sharded and isinstance(value, nn.Parameter)):
                full[name] = value.detach().cpu().clone()
        return full

    def snapshot(self) -> Files:
        """Return copies of this rank's shards, as DeepSpeed would write them."""
        with tempfile.TemporaryDirectory(prefix="slingstone-") as directory:
            self._engine.save_checkpoint(directory, tag="engine", save_latest=False)
        files, self._host.files = self._host.files, {}
        return {str(Path(path).relative_to(directory)): state for path, state in files.items()}

    def load(self, directory: Path) -> None:
        """Read this rank's shards."""
        loaded, _ = self._engine.load_checkpoint(str(directory), tag="engine")
        if loaded is None:
            raise ValueError(f"checkpoint {directory} holds no DeepSpeed state; remove it or resume from another one")


def _import_deepspeed() -> Any:
    """Import DeepSpeed without compiling its shared-memory op, which takes a minute and serves inference only."""
    import deepspeed
    import deepspeed.ops
    from deepspeed.utils.logging import logger

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logger.setLevel("ERROR")
    return deepspeed


def _trained(module: nn.Module) -> list[nn.Parameter]:
    return [weight for weight in module.parameters() if weight.requires_grad]


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0
