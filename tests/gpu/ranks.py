"""What spawned ranks run on the device: two small networks that chase each other, and whole training states."""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

BATCH = 8
STEPS, SAVED = 6, 3
"""Steps of a whole run, and those before it is saved."""


@dataclass(frozen=True)
class Work:
    """What the ranks do.

    Attributes:
        device: `cuda` or `cpu`; every rank has one of its own.
        engines: arguments of `Runtime`, by label.
        yaml: the configuration of a tiny run.
        directory: where ranks meet, checkpoints lie, and rank 0 leaves `results.pt`.
    """

    device: str
    engines: Mapping[str, Mapping[str, Any]]
    yaml: str
    directory: str


def run(rank: int, world: int, measure: Callable[[Work, torch.device], dict[str, Any]], work: Work) -> None:
    """Entry of a spawned rank."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    # Read when cuBLAS and DeepSpeed start.
    os.environ |= {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "DS_ACCELERATOR": work.device}
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    device, backend = torch.device("cpu"), "gloo"
    if work.device == "cuda":
        device, backend = torch.device("cuda", rank), "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(device)
    deterministic(True)
    dist.init_process_group(backend, init_method=f"file://{work.directory}/rendezvous", rank=rank, world_size=world)
    results = measure(work, device)
    if rank == 0:
        torch.save(results, Path(work.directory) / "results.pt")
    dist.barrier()
    dist.destroy_process_group()


def deterministic(wanted: bool) -> None:
    """Have sums taken in one order, where PyTorch can: atomic additions on a GPU come in any."""
    torch.use_deterministic_algorithms(wanted, warn_only=True)
    torch.backends.cudnn.deterministic = wanted


def chases(work: Work, device: torch.device) -> dict[str, Any]:
    """Return losses and norms of the small networks under every engine, and on one rank by plain torch on the CPU."""
    from slingstone.config import Runtime

    found = {label: chase(device, Runtime(**options)) for label, options in work.engines.items()}
    if dist.get_world_size() == 1:
        found["cpu"] = chase(torch.device("cpu"), Runtime(engine="torch"))
    return found


def chase(device: torch.device, runtime: Any) -> list[list[float]]:
    """Train two networks in turns, the generator through the frozen assistant; return losses and norms of each step.

    All is drawn on the CPU, so that every device sees the same.
    """
    from slingstone.config import Optimizer
    from slingstone.engines.engine import build_engine

    rank, world = dist.get_rank(), dist.get_world_size()
    mine = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    adam = Optimizer(kind="adamw", lr=1e-2, weight_decay=0.01, warmup_steps=3)
    # A norm below the first gradients', so that clipping matters.
    generator, assistant = (build_engine(network(seed).to(device), adam, runtime, 0.5) for seed in (1, 2))
    dtype = next(generator.module.parameters()).dtype

    def draw(seed: int) -> Tensor:
        return torch.randn(BATCH, 6, generator=torch.Generator().manual_seed(seed)).to(device, dtype)[mine]

    history = []
    for step in range(5):
        with torch.no_grad():
            x0 = generator.module(draw(4 * step))
        noise = draw(4 * step + 1)
        assistant_loss = (assistant(x0 + noise) - noise).float().square().sum(1).mean()
        assistant.backward(assistant_loss)
        assistant_norm = assistant.step()

        x0 = generator(draw(4 * step + 2))
        leaf = x0.detach().requires_grad_()
        assistant.module.requires_grad_(False)
        generator_loss = (assistant.module(leaf) - leaf.flip(1)).float().square().sum(1).mean()
        (gradient,) = torch.autograd.grad(generator_loss, leaf)
        assistant.module.requires_grad_(True)
        generator.backward((x0 * gradient).sum())
        norm = generator.step()
        losses = torch.stack([assistant_loss.detach(), generator_loss.detach()])
        dist.all_reduce(losses)
        history.append([*(losses / world).tolist(), assistant_norm, norm])
    return history


def network(seed: int) -> nn.Module:
    """Return a network of 900 weights."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 24), nn.SiLU(), nn.Linear(24, 24), nn.SiLU(), nn.Linear(24, 6))


def states(work: Work, device: torch.device) -> dict[str, Any]:
    """Return, by engine, the metrics of a whole run and of one that was saved, restored and continued."""
    found = {}
    for label, options in work.engines.items():
        build = partial(TinyRun, work, label, options, device)
        whole = build()
        metrics = whole.steps(SAVED)
        whole.save()
        metrics += whole.steps(STEPS - SAVED)
        restored = build()
        assert restored.restore() == SAVED * BATCH
        found[label] = {
            "metrics": metrics,
            "resumed": restored.steps(STEPS - SAVED),
            "weights": difference(whole.weights(), restored.weights()),
        }
    return found


def ordinary(work: Work, device: torch.device) -> dict[str, Any]:
    """Return how far a repeated and a resumed run end from the first, where sums may come in any order."""
    deterministic(False)
    label, options = next(iter(work.engines.items()))
    first, second = (TinyRun(work, f"{label}_{name}", options, device) for name in ("first", "second"))
    for made in (first, second):
        made.steps(SAVED)
    first.save()
    for made in (first, second):
        made.steps(STEPS - SAVED)
    restored = TinyRun(work, f"{label}_first", options, device)
    restored.restore()
    restored.steps(STEPS - SAVED)
    return {
        "repeated": spread(first.weights(), second.weights()),
        "resumed": spread(first.weights(), restored.weights()),
    }


def spread(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """Return the root mean square difference of two sets of tensors."""
    apart = torch.cat([(first[name].double() - second[name].double()).flatten() for name in first])
    return float(apart.square().mean().sqrt())


def difference(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """Return the largest difference of two sets of tensors."""
    assert first.keys() == second.keys()
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)


class Waves(nn.Module):
    """A reward without kernels that add in any order: the backward pass of PyTorch's antialiased resizing is one."""

    @classmethod
    def load(cls, *_: Any) -> "Waves":
        """Return it, whatever the checkpoint."""
        return cls()

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return a score a picture."""
        return (5 * images).sin().mean((1, 2, 3))


class TinyRun:
    """A training state as a worker assembles it: tiny pipeline, a reward in the worker's own process, no Ray."""

    def __init__(self, work: Work, label: str, options: Mapping[str, Any], device: torch.device) -> None:
        from slingstone.checkpoints.saving import Checkpoints
        from slingstone.checkpoints.store import open_store
        from slingstone.config import flatten, load
        from slingstone.worker.assembly import assemble
        from slingstone.worker.assignment import Assignment

        overrides = [f"runtime.{key}={value}" for key, value in options.items()]
        overrides += [f"name={label}", f"runtime.use_gpu={str(device.type == 'cuda').lower()}"]
        self.experiment = load(work.yaml, overrides)
        directory = Path(work.directory) / label
        assignment = Assignment(self.experiment, str(directory), "", "", None)
        self.parts = assemble(assignment, dist.get_rank(), dist.get_world_size(), device)
        self.saved = Checkpoints(
            state=self.parts.state,
            store=open_store(str(directory)),
            recovery=self.experiment.recovery,
            config=flatten(self.experiment),
            keep=1,
            say=lambda line: None,
        )

    def steps(self, count: int) -> list[dict[str, float]]:
        """Take steps; return their metrics without the times."""
        kept = []
        for _ in range(count):
            metrics = self.parts.trainer.step()
            self.saved.advance()
            kept.append({name: value for name, value in metrics.items() if not name.startswith("seconds/")})
        return kept

    def save(self) -> None:
        """Save, and wait until it is published."""
        from slingstone.checkpoints.manifest import Facts
        from slingstone.config import flatten

        world = dist.get_world_size()
        self.saved.save(Facts(self.parts.trainer.images, world, "mlflow", flatten(self.experiment)))
        self.saved.finish()

    def restore(self) -> int:
        """Go back to what was saved; return its position in images."""
        restored = self.saved.restore()
        assert restored is not None
        return self.parts.trainer.images

    def weights(self) -> dict[str, Tensor]:
        """Return all weights and the average, on the CPU."""
        from tests.whole import whole

        trainer = self.parts.trainer
        held = [(name, engine.module, engine.masters()) for name, engine in self.parts.state.engines.items()]
        held.append(("ema", trainer.generator.module, trainer.ema.fragments))
        return {f"{name}.{key}": value for name, module, part in held for key, value in whole(module, part).items()}
