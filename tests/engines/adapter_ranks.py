"""What the ranks of the adapters' engine tests run: three networks over one frozen base, two of them trained."""

import copy
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from slingstone.checkpoints.manifest import write
from slingstone.config import Runtime
from slingstone.engines.engine import ShardedEngine, build_engine
from slingstone.networks.adapters import Adapter, add_adapter, cast_frozen, sharing_copy, trained_part
from tests.engines.ranks import ADAM, CLIP, alternate, network
from tests.whole import whole

LORA = Adapter(rank=2, alpha=4.0, target_modules=("0", "2", "4"))


def networks(runtime: Runtime) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Return the frozen reference, and generator and assistant over its weights."""
    reference = network(1).requires_grad_(False)
    adapted = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        made = sharing_copy(reference)
        add_adapter(made, LORA)
        # As far from the base as whole networks of other seeds would be, so that the engines have something to do.
        for weight in made.parameters():
            if weight.requires_grad:
                weight.data += 0.3 * torch.randn_like(weight)
        adapted.append(made)
    for part in (reference, *adapted):
        cast_frozen(part, torch.bfloat16 if runtime.precision == "bf16" else torch.float32)
    return reference, adapted[0], adapted[1]


def measure(directory: Path, runtime: Runtime) -> dict[str, object]:
    """Train five steps, save after three, resume there in other engines."""
    reference, *adapted = networks(runtime)
    before = copy.deepcopy(reference.state_dict())
    generator, assistant = _engines(adapted, runtime)
    losses = alternate(generator, assistant, range(3))
    for name, engine in (("generator", generator), ("assistant", assistant)):
        write(engine.snapshot(), directory / name)
    dist.barrier()
    losses += alternate(generator, assistant, range(3, 5))

    again = _engines(networks(runtime)[1:], runtime)
    for name, engine in zip(("generator", "assistant"), again, strict=True):
        engine.load(directory / name)
    probe = torch.ones(1, 6, dtype=next(iter(before.values())).dtype)
    with torch.no_grad():
        direct, through_engine = adapted[0](probe), generator.module(probe)
    return {
        "losses": losses,
        "resumed": alternate(*again, range(3, 5)),
        "base_unchanged": all(torch.equal(before[name], value) for name, value in reference.state_dict().items()),
        "masters": whole(generator.module, generator.masters()),
        "same_picture": torch.equal(direct, through_engine),
        "checkpoint_bytes": sum(file.stat().st_size for file in directory.rglob("*") if file.is_file()),
    }


def _engines(adapted: list[nn.Module] | tuple[nn.Module, ...], runtime: Runtime) -> tuple[ShardedEngine, ShardedEngine]:
    generator, assistant = (build_engine(trained_part(module), ADAM, runtime, CLIP) for module in adapted)
    return generator, assistant
