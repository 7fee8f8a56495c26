"""A world of three numbers a picture: the decoder is the identity, rewards are formulas, engines are plain torch."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from slingstone.networks.gaussian import GaussianMixture, LinearGenerator
from slingstone.networks.protocol import Condition, ModelFamily
from slingstone.objectives.diffusion import NoiseSchedule
from slingstone.step.ema import Fragment
from slingstone.step.panel import PendingReward, RewardPanel, RewardTerm, Tolerance
from slingstone.step.trainer import StepSettings, Timesteps, Trainer

LEVELS = 6


class TorchEngine:
    """The smallest thing that is an Engine."""

    def __init__(self, module: nn.Module, lr: float, decay: float = 1.0) -> None:
        self.module = module
        self.optimizer = torch.optim.Adam(module.parameters(), lr=lr, betas=(0.0, 0.99))
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, decay)

    def __call__(self, *args: Any) -> Tensor:
        return self.module(*args)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> float:
        norm = float(nn.utils.clip_grad_norm_(self.module.parameters(), float("inf")))
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()
        return norm

    def masters(self) -> dict[str, Fragment]:
        return {name: Fragment(0, weight.detach().flatten()) for name, weight in self.module.named_parameters()}

    def state_dict(self) -> dict[str, Any]:
        return {"module": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])


class NoText:
    """Encodes a prompt as its length, and the null prompt as zero."""

    def encode(self, prompts: Sequence[str]) -> Condition:
        return {"length": torch.tensor([[float(len(prompt))] for prompt in prompts])}

    def null(self, batch: int) -> Condition:
        return {"length": torch.zeros(batch, 1)}


class Identity:
    """Latents of three channels are pictures already."""

    chunk = 0

    def decode(self, latents: Tensor) -> Tensor:
        return latents


@dataclass(frozen=True)
class Ready:
    """A reward that has arrived."""

    scored: tuple[Tensor, Tensor]

    def result(self) -> tuple[Tensor, Tensor]:
        return self.scored


def linear_reward(name: str, slope: Tensor, weight: float = 1.0) -> RewardTerm:
    """Return `r(image) = slope . image`."""

    def submit(images: Tensor, prompts: Sequence[str]) -> PendingReward:
        gradient = slope.to(images).view(1, 3, 1, 1).expand_as(images)
        return Ready(((gradient * images).sum((1, 2, 3)), gradient))

    return RewardTerm(name, weight, submit)


@dataclass
class World:
    """A trainer in the making: change what a test is about, then `build`."""

    settings: StepSettings
    reference: nn.Module
    assistant: nn.Module
    generator: LinearGenerator
    schedule: NoiseSchedule
    rewards: list[RewardTerm] = field(default_factory=list)
    tolerance: Tolerance = field(default_factory=Tolerance)
    decoder: Any = field(default_factory=Identity)
    text_encoder: Any = field(default_factory=NoText)
    engine: Callable[..., TorchEngine] = TorchEngine
    generator_lr: float = 0.01
    assistant_lr: float = 0.01
    decay: float = 1.0
    seed: int = 0

    def build(self) -> Trainer:
        family = ModelFamily(
            generator=self.generator,
            assistant=self.assistant,
            reference=self.reference,
            text_encoder=self.text_encoder,
            decoder=self.decoder,
            schedule=self.schedule,
            latent_shape=(3, 1, 1),
        )
        return Trainer(
            family,
            self.engine(self.generator, self.generator_lr, self.decay),
            self.engine(self.assistant, self.assistant_lr, self.decay),
            RewardPanel(self.rewards, self.tolerance),
            itertools.repeat(["a"] * self.settings.batch_size),
            self.settings,
            torch.Generator().manual_seed(self.seed),
        )


def make_world(**changes: Any) -> World:
    """Return a Gaussian reference N(m, 0.64), an assistant equal to it, and a generator that matches it."""
    alpha = torch.linspace(0.95, 0.3, LEVELS)
    schedule = NoiseSchedule(alpha, (1 - alpha**2).sqrt())
    mean, factor = torch.tensor([0.3, -0.2, 0.5]), 0.8 * torch.eye(3)
    one = torch.ones(1)
    every = Timesteps(0, LEVELS - 1)
    settings = StepSettings(batch_size=32, generator_timesteps=every, assistant_timesteps=every)
    world = World(
        settings=settings,
        reference=GaussianMixture(mean[None], factor[None], one, schedule),
        assistant=GaussianMixture(mean[None], factor[None], one, schedule),
        generator=LinearGenerator(mean, factor),
        schedule=schedule,
    )
    for name, value in changes.items():
        setattr(world, name, value)
    return world


def weights(module: nn.Module) -> list[Tensor]:
    """Return copies of all weights."""
    return [parameter.detach().clone() for parameter in module.parameters()]


def without_times(metrics: dict[str, float]) -> dict[str, float]:
    """Return a step's metrics that are the same in each of its repetitions."""
    return {name: value for name, value in metrics.items() if not name.startswith("seconds/")}


@pytest.fixture
def world() -> World:
    return make_world()


@pytest.fixture
def reward() -> Callable[..., RewardTerm]:
    return linear_reward
