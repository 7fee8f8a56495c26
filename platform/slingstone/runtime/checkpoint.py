"""All that a resumed run needs: both engines shard by shard, the EMA, every rank's randomness, and the position."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from slingstone.data import PromptSampler
from slingstone.runtime.engine import ShardedEngine
from slingstone.trainer import Trainer


@dataclass(frozen=True)
class Facts:
    """What the checkpoint says about itself.

    Attributes:
        images: progress.
        num_workers: ranks that wrote it, and that must read it.
        mlflow_run_id: the run that a resumed job continues.
        config: flat dump of the configuration.
    """

    images: int
    num_workers: int
    mlflow_run_id: str
    config: dict[str, str]


@dataclass(frozen=True)
class State:
    """The objects whose state makes up a checkpoint, on one rank."""

    trainer: Trainer
    engines: Mapping[str, ShardedEngine]
    prompts: PromptSampler
    rank: int

    def save(self, directory: Path, facts: Facts) -> None:
        """Write this rank's part; every rank must call it, each with a directory of its own. Ray merges them."""
        for name, engine in self.engines.items():
            engine.save(directory / name)
        trained = self.trainer.state_dict()
        average = trained.pop("ema")
        torch.save({"trainer": trained, "torch_rng": torch.get_rng_state()}, directory / f"rank_{self.rank}.pt")
        if self._owns_average:
            torch.save(average, directory / self._average_file)
        if self.rank == 0:
            run = asdict(facts) | {"prompts": self.prompts.state_dict()}
            (directory / "run.json").write_text(json.dumps(run, indent=1))

    def restore(self, directory: Path) -> Facts:
        """Read back what `save` wrote with as many ranks.

        Raises:
            ValueError: if it was written by another number of ranks.
        """
        run: dict[str, Any] = json.loads((directory / "run.json").read_text())
        position = run.pop("prompts")
        facts = Facts(**run)
        if facts.num_workers != self.prompts.world:
            raise ValueError(
                f"runtime.num_workers = {self.prompts.world}: the checkpoint was written by {facts.num_workers};"
                " continue with as many, or start a run of another name"
            )
        for name, engine in self.engines.items():
            engine.load(directory / name)
        own = torch.load(directory / f"rank_{self.rank}.pt", map_location="cpu", weights_only=True)
        average = torch.load(directory / self._average_file, map_location="cpu", weights_only=True)
        self.trainer.load_state_dict(own["trainer"] | {"ema": average})
        torch.set_rng_state(own["torch_rng"])
        self.prompts.load_state_dict(position)
        return facts

    @property
    def _average_file(self) -> str:
        return f"ema_{self.rank}.pt" if self.engines["generator"].sharded else "ema.pt"

    @property
    def _owns_average(self) -> bool:
        return self.engines["generator"].sharded or self.rank == 0


def averaged_weights(trainer: Trainer, generator: ShardedEngine) -> dict[str, torch.Tensor]:
    """Return the whole averaged generator on every rank, on the CPU; a collective."""
    if not generator.sharded:
        return {name: value.detach().cpu() for name, value in trainer.ema.shadow.items()}
    with trainer.ema.swapped_in():
        return generator.full_weights()
