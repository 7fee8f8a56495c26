"""Preprocessing at the client: the wire carries a picture of the model's size, and the gradient is pulled back here."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from reward_services.pending import Lazy
from reward_services.preprocess import Preprocess
from reward_services.protocol import PendingReward, PendingScores, RewardClient, RewardModel, check_request


@runtime_checkable
class Preprocessed(RewardModel, Protocol):
    """A reward model that judges `preprocess(images)` and looks at the pictures in no other way."""

    preprocess: Preprocess


def on_inputs(model: Preprocessed) -> RewardModel:
    """Return the same model, sharing its weights, for pictures that `preprocess.fitted` returned."""
    view = copy.copy(model)
    view.preprocess = model.preprocess.after_fitting()
    return view


@dataclass(frozen=True)
class PreparingClient:
    """Preprocesses pictures where they are, and asks another client about the small ones.

    Scores and gradients are those of the service's own preprocessing, bit for bit on the same kind of device.

    Attributes:
        client: asks the service about inputs: a `ServeClient` or `HttpClient` with `prepared=True`.
        rule: the reward's own, as `describe` tells it.
    """

    client: RewardClient
    rule: Preprocess

    def submit(self, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]) -> PendingReward:
        """Preprocess and send RGB pictures in [0, 1] with their prompts; does not wait."""
        check_request(self.name, images, prompts)
        leaf = images.detach().float().requires_grad_(True)
        with torch.enable_grad():
            inputs = self.rule.fitted(leaf)
        pending = self.client.submit(inputs.detach(), prompts)

        def find() -> tuple[Tensor, Tensor]:
            scores, gradient = pending.result()
            (pulled,) = torch.autograd.grad(inputs, leaf, gradient)
            return scores, pulled

        return Lazy(find)

    def submit_for_scores(self, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]) -> PendingScores:
        """Preprocess and send them for the scores alone; does not wait."""
        check_request(self.name, images, prompts)
        with torch.no_grad():
            return self.client.submit_for_scores(self.rule.fitted(images.detach().float()), prompts)

    @property
    def name(self) -> str:
        """What errors call the reward."""
        return self.client.name
