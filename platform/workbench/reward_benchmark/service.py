"""The service with a clock at its doors."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray import serve
from ray.serve import Application
from starlette.requests import Request
from starlette.responses import Response

from reward_services.batching import Pass
from reward_services.deployment import RewardService, options
from reward_services.spec import RewardSpec


@dataclass(frozen=True)
class Visit:
    """When a request was where, in seconds since the epoch: client and replica share a machine.

    Attributes:
        arrived: it reached the replica's code.
        answered: it left it.
        queued_s: it waited there for its pass.
        compute_s: that pass took.
    """

    arrived: float
    answered: float
    queued_s: float
    compute_s: float


class TimedService:
    """A `RewardService` that also tells the times of a request; only for one caller at a time."""

    def __init__(self, spec: dict[str, Any]):
        self._last = Pass(0, 0.0, ())
        self._service = RewardService(spec, observe=self._observe)

    async def __call__(self, request: Request) -> Response:
        """Answer an HTTP request."""
        return await self._service(request)

    async def score_and_gradient(
        self, images: np.ndarray, prompts: Sequence[str], prepared: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return what the service returns."""
        return await self._service.score_and_gradient(images, prompts, prepared)

    async def timed(self, images: np.ndarray, prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, Visit]:
        """Return what the service returns, and when."""
        arrived = time.time()
        scores, gradient = await self._service.score_and_gradient(images, prompts)
        answered = time.time()
        return scores, gradient, Visit(arrived, answered, self._last.queued_s[0], self._last.compute_s)

    async def describe(self) -> dict[str, Any]:
        """Return what the service says of itself."""
        return await self._service.describe()

    async def check_health(self) -> None:
        """Judge the test picture again."""
        await self._service.check_health()

    def _observe(self, done: Pass) -> None:
        self._last = done


def build(spec: RewardSpec) -> Application:
    """Return the application, with the options of the real one."""
    return serve.deployment(**options(spec))(TimedService).bind(spec.model_dump())
