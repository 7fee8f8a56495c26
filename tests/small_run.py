"""A whole training state in one process, without a cluster: three numbers a picture, the real engines."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slingstone.checkpoints.manifest import Facts
from slingstone.checkpoints.saving import Checkpoints
from slingstone.checkpoints.state import State
from slingstone.checkpoints.store import open_store
from slingstone.config import Experiment, Optimizer, Runtime, flatten, load
from slingstone.engines.engine import build_engine
from slingstone.networks.adapters import Adapter, add_adapter, trained_part
from slingstone.prompts.sampler import PromptSampler
from slingstone.step.panel import RewardPanel, RunningScale
from slingstone.step.trainer import StepSettings, Timesteps, Trainer
from tests.step.conftest import LEVELS, linear_reward, make_world
from tests.whole import whole

ROOT = Path(__file__).resolve().parents[1]
ADAM = Optimizer(kind="adamw", lr=1e-2, weight_decay=0.01, warmup_steps=3)
BATCH = 8
LORA = Adapter(rank=2, alpha=4.0, target_modules=("mix",))
BASE = ("name=small", "training.batch_size=8", "training.num_images=800", "training.warmup_images=0")


class Mixed(nn.Module):
    """A network whose three numbers a picture pass a linear layer, which can have an adapter."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.mix = nn.Linear(3, 3)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        found = self.inner(*args, **kwargs)
        return found + 0.1 * self.mix(found.flatten(1)).view_as(found)


@dataclass
class Small:
    """A run of a few weights: its trainer, and its checkpoints under a directory."""

    experiment: Experiment
    trainer: Trainer
    state: State
    saved: Checkpoints
    said: list[str]

    def steps(self, count: int) -> list[dict[str, float]]:
        """Take steps; return their metrics without the times."""
        kept = []
        for _ in range(count):
            metrics = self.trainer.step()
            self.saved.advance()
            kept.append({name: value for name, value in metrics.items() if not name.startswith("seconds/")})
        return kept

    def save(self, score: float | None = None) -> str:
        """Save, wait until it is published, and return the checkpoint's name."""
        facts = Facts(self.trainer.images, self.state.prompts.world, "mlflow", flatten(self.experiment), score)
        self.saved.save(facts)
        self.saved.finish()
        return facts.name

    def everything(self) -> dict[str, torch.Tensor]:
        """Return all unrounded weights and the average, whole and copied; a collective."""
        found = {name: (engine.module, engine.masters()) for name, engine in self.state.engines.items()}
        found["ema"] = self.trainer.generator.module, self.trainer.ema.fragments
        return {
            f"{name}.{key}": value
            for name, (module, part) in found.items()
            for key, value in whole(module, part).items()
        }


def small(
    root: Path | str,
    overrides: Sequence[str] = (),
    runtime: Runtime | None = None,
    rank: int = 0,
    world: int = 1,
    lora: bool = False,
) -> Small:
    """Build the run on one rank; its checkpoints lie under `root`, a path or a URI. `lora` trains adapters only."""
    experiment = load(ROOT / "configs" / "align" / "scenes.yaml", [*BASE, *overrides])
    made = make_world()
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in made.generator.parameters():
            weight.add_(0.3)  # off the optimum, so that there is something to learn
    if lora:
        made.generator, made.assistant = Mixed(made.generator), Mixed(made.assistant)
        for network in (made.generator, made.assistant):
            add_adapter(network, LORA)
    runtime = runtime or Runtime(engine="torch")
    generator = build_engine(trained_part(made.generator), ADAM, runtime, 1.0)
    assistant = build_engine(trained_part(made.assistant), ADAM, runtime, 1.0)
    prompts = PromptSampler(["a", "bb", "ccc", "dddd", "eeeee"], BATCH, rank, world)
    levels = Timesteps(0, LEVELS - 1)
    settings = StepSettings(
        BATCH // world, levels, levels, world_size=world, reward_weight=0.1, ema_half_life_images=32.0
    )
    term = replace(linear_reward("slope", torch.tensor([1.0, 0.5, -1.0])), scale=RunningScale(40.0))
    trainer = Trainer(
        family=made.build().family,
        generator=generator,
        assistant=assistant,
        rewards=RewardPanel([term]),
        prompts=prompts,
        settings=settings,
        rng=torch.Generator().manual_seed(7 + rank),
    )
    state = State(trainer, {"generator": generator, "assistant": assistant}, prompts, rank)
    said: list[str] = []
    keep = experiment.training.keep_checkpoints
    saved = Checkpoints(state, open_store(str(root)), experiment.recovery, flatten(experiment), keep, said.append)
    return Small(experiment, trainer, state, saved, said)
