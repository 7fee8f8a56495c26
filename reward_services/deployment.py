"""A reward model as a Ray Serve application: scores and gradients of pictures, batched across requests."""

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ray import serve
from ray.serve import Application

from reward_services.batching import Batcher
from reward_services.gradient import score_and_gradient
from reward_services.models import load
from reward_services.protocol import RewardError, RewardFailedError, check_request
from reward_services.spec import RewardSpec
from reward_services.upstream.environment import actor_options

logger = logging.getLogger("ray.serve")


class RewardService:
    """One replica of one reward.

    Not decorated: under its own name the class travels to replicas by reference; `serve.deployment` as a decorator
    would make Ray pickle its code.
    """

    def __init__(self, spec: dict[str, Any]):
        self._spec = RewardSpec(**spec)
        torch.set_num_threads(max(1, round(self._spec.num_cpus)))
        self._model = load(self._spec)
        self._batcher = Batcher(self._compute, self._spec.max_batch_images, self._spec.batch_wait_timeout_s)
        self._check_model()

    async def score_and_gradient(self, images: np.ndarray, prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return float32 scores [batch] and their gradients with respect to the pictures [batch, 3, height, width].

        Args:
            images: float32 RGB pictures in [0, 1], [batch, 3, height, width].
            prompts: one a picture.

        Raises:
            InvalidRequestError: the request breaks the contract.
            RewardFailedError: the model raised.
        """
        name = self._spec.name
        await asyncio.to_thread(check_request, name, images, prompts)
        try:
            return await self._batcher.submit(images, prompts)
        except RewardError:
            raise
        except Exception as error:
            logger.exception("reward %r failed on %s", name, images.shape)
            raise RewardFailedError(name, f"{type(error).__name__}: {error}") from error

    async def describe(self) -> dict[str, Any]:
        """Return the spec that this replica serves."""
        return self._spec.model_dump()

    async def check_health(self) -> None:
        """Answer Serve's probe; that the event loop is free to do so is the proof of health."""

    def _compute(self, images: np.ndarray, prompts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        if self._spec.simulated_latency_s:
            time.sleep(self._spec.simulated_latency_s)
        return self._judge(images, prompts)

    def _judge(self, images: np.ndarray, prompts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        # Arrays from the object store are read-only and shared with other services: torch.tensor copies.
        batch = torch.tensor(images, device=self._spec.device)
        scores, gradient = score_and_gradient(self._model, batch, prompts)
        return scores.float().cpu().numpy(), gradient.float().cpu().numpy()

    def _check_model(self) -> None:
        """Refuse to serve a model that cannot judge a grey picture; also warms up what is compiled at first use."""
        grey = np.full((1, 3, 64, 64), 0.5, dtype=np.float32)
        scores, gradient = self._judge(grey, ["a grey picture"])
        if not (np.isfinite(scores).all() and np.isfinite(gradient).all()):
            raise RewardFailedError(
                self._spec.name, f"checkpoint {self._spec.checkpoint!r} gives {scores} for a grey picture"
            )


def build(args: RewardSpec) -> Application:
    """Return the application of one reward, for `serve.run`, `serve deploy` and configs/serve alike."""
    spec = RewardSpec(**args.model_dump(include=set(RewardSpec.model_fields)))
    deployment = serve.deployment(
        num_replicas=spec.num_replicas,
        # Enough in flight to fill one pass while another is computed, even if every request carries one picture.
        max_ongoing_requests=2 * spec.max_batch_images,
        max_queued_requests=spec.max_queued_requests,
        ray_actor_options={"num_cpus": spec.num_cpus, "num_gpus": spec.num_gpus, **actor_options(spec)},
        health_check_period_s=5,
        health_check_timeout_s=30,
        # A wrong checkpoint stays wrong: say so at once. Replicas that once ran are restarted for ever.
        max_constructor_retry_count=1,
        graceful_shutdown_timeout_s=10,
    )
    return deployment(RewardService).bind(spec.model_dump())
