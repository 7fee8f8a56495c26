"""All that a resumed run needs: both engines shard by shard, the EMA, every rank's randomness, and the position."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from slingstone.checkpoints.manifest import Facts
from slingstone.engines.engine import ShardedEngine
from slingstone.engines.shards import Files, copied, read
from slingstone.prompts.sampler import PromptSampler


@runtime_checkable
class Resumable(Protocol):
    """A trainer: what it holds beside its engines, its average under `ema` where it has one."""

    def state_dict(self) -> dict[str, Any]:
        """Return it."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back."""
        ...


@dataclass(frozen=True)
class State:
    """The objects whose state makes up a checkpoint, on one rank."""

    trainer: Resumable
    engines: Mapping[str, ShardedEngine]
    prompts: PromptSampler
    rank: int

    def snapshot(self) -> Files:
        """Return this rank's files, copied to host memory; a collective. Together the ranks' files are a checkpoint."""
        files = {
            f"{name}/{path}": tree for name, engine in self.engines.items() for path, tree in engine.snapshot().items()
        }
        trained = copied(self.trainer.state_dict())
        average = trained.pop("ema", {})
        files[f"rank_{self.rank}.pt"] = {
            "trainer": trained,
            "torch_rng": torch.get_rng_state(),
            "prompts": self.prompts.state_dict(),
        }
        files[f"ema_{self.rank}.pt"] = average
        return files

    def restore(self, directory: Path, facts: Facts) -> None:
        """Read back what `snapshot` returned on as many ranks, and was written to that directory; a collective.

        Raises:
            ValueError: it was written by another number of ranks, or of other networks.
            DamagedCheckpoint: a file cannot be read.
        """
        if facts.num_workers != self.prompts.world:
            raise ValueError(
                f"runtime.num_workers = {self.prompts.world}: the checkpoint was written by {facts.num_workers};"
                " continue with as many, or start a run of another name"
            )
        for name, engine in self.engines.items():
            engine.load(directory / name)
        own, average = read(directory / f"rank_{self.rank}.pt"), read(directory / f"ema_{self.rank}.pt")
        self.trainer.load_state_dict(own["trainer"] | {"ema": average})
        torch.set_rng_state(own["torch_rng"])
        self.prompts.load_state_dict(own["prompts"])
