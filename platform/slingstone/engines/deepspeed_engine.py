"""DeepSpeed at any ZeRO stage, behind `ShardedEngine`."""

import tempfile
from pathlib import Path
from typing import Any, cast

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine
from deepspeed.utils.logging import logger
from torch import Tensor, nn

from slingstone.config import Optimizer, Runtime
from slingstone.engines.engine import torch_optimizer, trained
from slingstone.engines.masters import fill, part_of_rank
from slingstone.engines.shards import Files, copied, read
from slingstone.plan.engine_memory import BUCKET
from slingstone.step.ema import Fragment


def deepspeed_config(runtime: Runtime, max_grad_norm: float, weights: int = BUCKET) -> dict[str, Any]:
    """Render DeepSpeed's dictionary for so many weights; a fresh one each call, since DeepSpeed writes into it."""
    clip_here = runtime.zero_stage > 0  # stage 0 reports no norm: DeepSpeedEngine clips there itself
    zero: dict[str, Any] = {
        "stage": runtime.zero_stage,
        "overlap_comm": runtime.use_gpu and runtime.zero_stage == 2,
        "reduce_bucket_size": min(BUCKET, weights),
        "stage3_param_persistence_threshold": 0,  # nothing stays whole on every rank
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
        # Its shared-memory op takes a minute to compile, and serves inference only.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        logger.setLevel("ERROR")
        self._stage, self._trained = runtime.zero_stage, trained(module)
        weights = list(self._trained.values())
        # DeepSpeed makes masters of what it has rounded.
        unrounded = {name: w.data for name, w in self._trained.items()} if runtime.precision == "bf16" else {}
        built, schedule = torch_optimizer([*weights], optimizer)
        self._norm: Tensor | None = None
        if runtime.zero_stage == 0:
            built.register_step_pre_hook(lambda base, *_: self._clip(base, max_grad_norm))
        initialize: Any = deepspeed.initialize
        self._engine, *_ = initialize(
            model=module,
            model_parameters=weights,
            optimizer=built,
            lr_scheduler=schedule,
            config=deepspeed_config(runtime, max_grad_norm, sum(weight.numel() for weight in weights)),
        )
        self._host = _HostMemory()
        self._engine.checkpoint_engine = self._host
        self.module: nn.Module = self._engine.module
        fill(unrounded.items(), self.masters())

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

    def masters(self) -> dict[str, Fragment]:
        """Return views of what this rank's optimizer owns."""
        if self._stage == 0:
            return part_of_rank(self._trained.items())
        if self._stage == 3:
            return self._partitions()
        found: dict[str, Any] = {name: cast("Any", weight)._hp_mapping for name, weight in self._trained.items()}
        return {
            name: Fragment(of.lp_fragment_address.start, of.hp_fragment.detach())
            for name, of in found.items()
            if of is not None  # which other ranks own
        }

    def _partitions(self) -> dict[str, Fragment]:
        """Return views of ZeRO-3's partitions: equal parts of each weight in a row, the last filled up."""
        optimizer, found = self._engine.optimizer, {}
        names = {id(weight): name for name, weight in self._trained.items()}
        for group, flat in zip(optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat, strict=True):
            parts = flat.detach().split([weight.partition_numel() for weight in group])
            for weight, part in zip(group, parts, strict=True):
                start = dist.get_rank() * len(part)
                if start < weight.ds_numel:
                    found[names[id(weight)]] = Fragment(start, part[: weight.ds_numel - start])
        return found

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


class _HostMemory(CheckpointEngine):
    """What DeepSpeed would write is copied; what it reads holds no code."""

    def __init__(self) -> None:
        super().__init__()
        self.files: Files = {}

    def save(self, state_dict: Any, path: str) -> None:
        self.files[path] = copied(state_dict)

    def load(self, path: str, map_location: Any = None) -> Any:
        return read(Path(path))

    def create(self, info: Any) -> None:
        pass

    def commit(self, info: Any) -> None:
        pass

    def preserves_storage_sharing(self) -> Any:
        return False  # views need not be cloned for us: `copied` clones them
