"""What the ranks of the traffic test run: one step of two engines, with the bytes of every collective counted."""

import gc
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from slingstone.checkpoints.manifest import write
from slingstone.config import Optimizer, Runtime
from slingstone.engines.engine import build_engine

WIDTH, LAYERS = 256, 4
WEIGHTS = LAYERS * WIDTH**2
COLLECTIVES = {
    "all_reduce": 0,
    "reduce": 0,
    "broadcast": 0,
    "reduce_scatter_tensor": 0,
    "all_gather_into_tensor": 0,
    "all_gather": 1,
    "reduce_scatter": 0,
}
"""Functions of torch.distributed, and which argument holds the whole or, for all_gather, one rank's part."""


@contextmanager
def counted(into: Counter) -> Iterator[None]:
    """Count the bytes that this rank sends in a ring: twice its share for an all-reduce, once for the others."""
    world = dist.get_world_size()
    kept = {name: getattr(dist, name) for name in COLLECTIVES}

    def counting(name: str, function: Callable[..., Any], place: int) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
            largest = max(tensor.nbytes for tensor in tensors) * (world if place else 1)
            into[name] += (2 if name == "all_reduce" else 1) * largest * (world - 1) // world
            return function(*args, **kwargs)

        return call

    for name, place in COLLECTIVES.items():
        setattr(dist, name, counting(name, kept[name], place))
    try:
        yield
    finally:
        for name, function in kept.items():
            setattr(dist, name, function)


def run(rank: int, world: int, directory: str, runtimes: dict[str, Runtime]) -> None:
    """Entry of a spawned rank."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=world)
    sent: Counter = Counter()
    with counted(sent):  # from the start: DeepSpeed keeps the functions that it finds when it is initialised
        found = {}
        for label, runtime in runtimes.items():
            found[label] = _step(Path(directory) / label, runtime, sent)
            gc.freeze()  # as in engines/ranks.py
    if rank == 0:
        (Path(directory) / "traffic.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def _step(directory: Path, runtime: Runtime, sent: Counter) -> dict[str, int]:
    def network() -> nn.Module:
        return nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))

    generator, assistant = (build_engine(network(), Optimizer(lr=1e-3), runtime, 1.0) for _ in range(2))
    dtype = next(generator.module.parameters()).dtype

    def draw() -> torch.Tensor:
        return torch.randn(2, WIDTH, dtype=dtype)

    def step() -> None:
        with torch.no_grad():
            x0 = generator.module(draw())
        assistant.backward(assistant(x0).float().square().mean())
        assistant.step()
        x0 = generator(draw())
        leaf = x0.detach().requires_grad_()
        assistant.module.requires_grad_(False)
        (gradient,) = torch.autograd.grad(assistant.module(leaf).float().square().sum(), leaf)
        assistant.module.requires_grad_(True)
        generator.backward((x0 * gradient).sum())
        generator.step()

    step()  # the first sets up what DeepSpeed keeps
    sent.clear()
    step()
    found = dict(sent)
    for name, engine in (("generator", generator), ("assistant", assistant)):
        write(engine.snapshot(), directory / name)
    dist.barrier()
    return found | {"checkpoint": sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())}
