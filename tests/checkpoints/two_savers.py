"""What two ranks do with one checkpoint: write it together, continue together, and fail together."""

import gc
import os
from pathlib import Path

import torch
import torch.distributed as dist

from slingstone.config import Runtime
from slingstone.engines.saved_weights import Weights, saved_weights
from tests.small_run import Small, small
from tests.whole import whole

ENGINES = {
    "torch": Runtime(num_workers=2, engine="torch"),
    "zero2": Runtime(num_workers=2, zero_stage=2),
    "zero3": Runtime(num_workers=2, zero_stage=3),
}


def save_and_resume(rank: int, root: str) -> None:
    """Entry of a spawned rank: leaves what it found in a file."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{root}/rendezvous", rank=rank, world_size=2)
    found = {}
    for label, runtime in ENGINES.items():
        gc.freeze()  # as in engines/ranks.py
        place = Path(root) / label

        def build(*overrides: str, runtime: Runtime = runtime, place: Path = place):
            return small(place, overrides, runtime, rank, 2)

        whole = build()
        whole.steps(2)
        whole.save()
        whole.steps(1)
        exported = _is_exported(place / whole.save(), whole)
        expected = whole.steps(2)
        resumed = build()
        resumed.saved.restore()
        same_steps = resumed.steps(2) == expected
        before, after = whole.everything(), resumed.everything()
        found[label] = {
            "same": same_steps and all(torch.equal(before[name], after[name]) for name in before),
            "exported": exported,
            "told": _break_and_restore(place, build, rank),
        }
    torch.save(found, Path(root) / f"found_{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def _is_exported(checkpoint: Path, run: Small) -> bool:
    """Return whether one process finds in the checkpoint what both ranks together held; a collective."""
    generator = run.state.engines["generator"]
    held: dict[Weights, dict[str, torch.Tensor]] = {
        "ema": whole(generator.module, run.trainer.ema.fragments),
        "raw": whole(generator.module, generator.masters()),
    }
    shapes = {name: weight.shape for name, weight in held["raw"].items()}
    found = {kind: saved_weights(checkpoint, kind, shapes) for kind in held}
    return all(torch.equal(found[kind][name], weight) for kind in held for name, weight in held[kind].items())


def _break_and_restore(place: Path, build, rank: int) -> list[str]:
    """Break a file; return what this rank is told then, and what it gets when it asks for the one before."""
    if rank == 0:
        path = place / "000000000024" / "rank_1.pt"
        path.write_bytes(path.read_bytes()[:-1])
    dist.barrier()
    told = []
    try:
        build().saved.restore()
    except ValueError as error:
        told.append(str(error))
    facts = build("recovery.on_damaged_checkpoint=previous").saved.restore()
    return [*told, facts.name if facts is not None else "nothing"]
