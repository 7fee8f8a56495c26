"""All that a resumed run needs: both engines shard by shard, the EMA, every rank's randomness, and the position."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from slingstone.checkpoints.manifest import Facts
from slingstone.engines.engine import ShardedEngine
from slingstone.engines.shards import Files, copied, read
from slingstone.prompts.sampler import PromptSampler
from slingstone.step.trainer import Trainer


@dataclass(frozen=True)
class State:
    """The objects whose state makes up a checkpoint, on one rank."""

    trainer: Trainer
    engines: Mapping[str, ShardedEngine]
    prompts: PromptSampler
    rank: int

    def snapshot(self) -> Files:
        """Return this rank's files, copied to host memory; a collective. Together the ranks' files are a checkpoint."""
        files = {
            f"{name}/{path}": tree for name, engine in self.engines.items() for path, tree in engine.snapshot().items()
        }
        trained = copied(self.trainer.state_dict())
        average = trained.pop("ema")
        files[f"rank_{self.rank}.pt"] = {
            "trainer": trained,
            "torch_rng": torch.get_rng_state(),
            "prompts": self.prompts.state_dict(),
        }
        if self.rank == 0 or self.engines["generator"].sharded:
            files[self._average_file] = average
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
        own, average = read(directory / f"rank_{self.rank}.pt"), read(directory / self._average_file)
        self.trainer.load_state_dict(own["trainer"] | {"ema": average})
        torch.set_rng_state(own["torch_rng"])
        self.prompts.load_state_dict(own["prompts"])

    @property
    def _average_file(self) -> str:
        return f"ema_{self.rank}.pt" if self.engines["generator"].sharded else "ema.pt"


def averaged_weights(trainer: Trainer, generator: ShardedEngine) -> dict[str, torch.Tensor]:
    """Return the whole averaged generator on every rank, on the CPU; a collective."""
    if not generator.sharded:
        return {name: value.detach().cpu() for name, value in trainer.ema.shadow.items()}
    with trainer.ema.swapped_in():
        return generator.full_weights()
