"""What the ranks of the engine tests run: two small networks that chase each other, under any engine."""

import gc
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from slingstone.checkpoints.manifest import write
from slingstone.config import Optimizer, Runtime
from slingstone.engines.engine import ShardedEngine, build_engine
from slingstone.engines.saved_weights import saved_weights
from slingstone.step.ema import ExponentialMovingAverage
from tests.engines.drift import missed
from tests.whole import whole

GLOBAL_BATCH = 8
ADAM = Optimizer(kind="adamw", lr=1e-2, weight_decay=0.01, warmup_steps=3)
CLIP = 0.5  # below the first gradients' norms, so that clipping matters


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 24), nn.SiLU(), nn.Linear(24, 24), nn.SiLU(), nn.Linear(24, 6))


def engines(runtime: Runtime) -> tuple[ShardedEngine, ShardedEngine]:
    return build_engine(network(1), ADAM, runtime, CLIP), build_engine(network(2), ADAM, runtime, CLIP)


def alternate(
    generator: ShardedEngine, assistant: ShardedEngine, steps: Sequence[int], rows: int = GLOBAL_BATCH
) -> list[list[float]]:
    """Train both in turns, the generator through the frozen assistant, on so many rows of the batch at a time.

    Returns:
        [losses and norms] of each step.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    mine = slice(rank * GLOBAL_BATCH // world, (rank + 1) * GLOBAL_BATCH // world)
    dtype = next(generator.module.parameters()).dtype

    def draw(seed: int) -> Tensor:
        rng = torch.Generator().manual_seed(seed)
        return torch.randn(GLOBAL_BATCH, 6, generator=rng).to(dtype)[mine]

    history = []
    for step in steps:
        with torch.no_grad():
            x0 = generator.module(draw(4 * step))
        noise = draw(4 * step + 1)
        assistant_loss = torch.zeros(())
        for x, eps in zip(x0.split(rows), noise.split(rows), strict=True):
            loss = (assistant(x + eps) - eps).float().square().sum() / len(x0)
            assistant.backward(loss)
            assistant_loss = assistant_loss + loss.detach()
        assistant_norm = assistant.step()

        generator_loss = torch.zeros(())
        for z in draw(4 * step + 2).split(rows):
            x0 = generator(z)
            leaf = x0.detach().requires_grad_()
            assistant.module.requires_grad_(False)
            loss = (assistant.module(leaf) - leaf.flip(1)).float().square().sum() / (GLOBAL_BATCH // world)
            (gradient,) = torch.autograd.grad(loss, leaf)
            assistant.module.requires_grad_(True)
            generator.backward((x0 * gradient).sum())
            generator_loss = generator_loss + loss.detach()
        norm = generator.step()
        losses = torch.stack([assistant_loss, generator_loss])
        dist.all_reduce(losses)
        history.append([*(losses / world).tolist(), assistant_norm, norm])
    return history


def run(
    rank: int,
    world: int,
    directory: str,
    runtimes: dict[str, Runtime],
    measure: Callable[[Path, Runtime], dict[str, object]] | None = None,
) -> None:
    """Entry of a spawned rank: run every engine, check the collectives, leave the results of rank 0 in a file."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=world)
    results = {}
    for label, runtime in runtimes.items():
        results[label] = (measure or _measure)(Path(directory) / label, runtime)
        gc.freeze()  # DeepSpeed collects garbage four times an engine, .3 s each over all that was imported
    if rank == 0:
        torch.save(results, Path(directory) / "results.pt")
    dist.barrier()
    dist.destroy_process_group()


def _measure(directory: Path, runtime: Runtime) -> dict[str, object]:
    generator, assistant = engines(runtime)
    losses = alternate(generator, assistant, range(3))
    for name, engine in (("generator", generator), ("assistant", assistant)):
        write(engine.snapshot(), directory / name)
    average = ExponentialMovingAverage(generator.masters, 1.0)
    write({f"ema_{dist.get_rank()}.pt": average.state_dict()}, directory)
    dist.barrier()
    held = whole(generator.module, generator.masters())
    shapes = {name: weight.shape for name, weight in held.items()}
    saved = [saved_weights(directory, kind, shapes) for kind in ("ema", "raw")]
    losses += alternate(generator, assistant, range(3, 5))

    resumed = engines(runtime)
    for name, engine in zip(("generator", "assistant"), resumed, strict=True):
        engine.load(directory / name)
    resumed_losses = alternate(*resumed, range(3, 5))

    return {
        "losses": losses,
        "saved": all(torch.equal(found[name], weight) for found in saved for name, weight in held.items()),
        "resumed": resumed_losses,
        "by_two": alternate(*engines(runtime), range(3), rows=2),
        "by_one": alternate(*engines(runtime), range(3), rows=1),
        "weights": whole(generator.module, generator.masters()),
        "average_bytes": sum(values.nbytes for _, values in average.fragments.values()),
        "missed": missed(runtime, 40),
    }
