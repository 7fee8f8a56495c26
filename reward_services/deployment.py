"""A reward model as a Ray Serve application: scores and gradients of pictures, batched across requests."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from ray import serve
from ray.serve import Application
from starlette.requests import Request
from starlette.responses import Response

from reward_services import self_test, wire
from reward_services.batching import Batcher, Result
from reward_services.cluster_access import refuse_open_cluster
from reward_services.gradient import score, score_and_gradient
from reward_services.identity import identity
from reward_services.ingress import HttpIngress
from reward_services.metrics import ServiceMetrics
from reward_services.models import load
from reward_services.prepared import Preprocessed, on_inputs
from reward_services.protocol import (
    InvalidRequestError,
    RewardError,
    RewardFailedError,
    RewardModel,
    check_request,
)
from reward_services.spec import RewardSpec, label_selector
from reward_services.upstream.environment import actor_options, versions

logger = logging.getLogger("ray.serve")
_HEALTH_CHECK_TIMEOUT_S = 30.0


class RewardService:
    """One replica of one reward.

    Not decorated: under its own name the class travels to replicas by reference; `serve.deployment` as a decorator
    would make Ray pickle its code.

    Args:
        spec: the fields of a `RewardSpec`.
    """

    def __init__(self, spec: dict[str, Any]):
        self._spec = RewardSpec(**spec)
        refuse_open_cluster(self._spec.open_cluster)
        torch.set_num_threads(max(1, round(self._spec.num_cpus)))
        if self._spec.device.startswith("cuda") and 0 < self._spec.num_gpus < 1:
            # To Ray a share is a number; without this one reward could leave no memory to its neighbours.
            torch.cuda.set_per_process_memory_fraction(self._spec.num_gpus)
        self._model = load(self._spec)
        self._rule, inside = None, self._model
        if isinstance(self._model, Preprocessed):
            self._rule, inside = self._model.preprocess, on_inputs(self._model)
        # By whether requests are prepared, and whether they want a gradient; only those of one way share a pass.
        self._ways = {
            (prepared, gradient): partial(self._judge, inside if prepared else self._model, gradient)
            for prepared, gradient in product((False, True), repeat=2)
        }
        self._metrics = ServiceMetrics(self._spec.name)
        self._batcher = Batcher(
            self._ways[False, True],
            self._spec.max_batch_images,
            self._spec.batch_wait_timeout_s,
            self._metrics.passed,
        )
        self._test: asyncio.Task[None] | None = None
        # A model that cannot judge its test pictures is not served; this also warms up what is compiled at first use.
        self._test_score = self_test.start(self._spec, self._model)
        self._described = {
            "spec": self._spec.model_dump(),
            "rule": None if self._rule is None else asdict(self._rule),
            "identity": identity(self._spec),
            "self_test_score": self._test_score,
            "differentiable": self_test.differentiable(self._spec, self._model),
            "versions": versions(),
        }
        name, failed = self._spec.name, self._metrics.failed
        self._http = HttpIngress(name, self._spec.http, self._judge_body, self._described, failed)

    async def __call__(self, request: Request) -> Response:
        """Answer an HTTP request, where the application has a route."""
        return await self._http.answer(request)

    async def score_and_gradient(self, images: np.ndarray, prompts: Sequence[str], prepared: bool = False) -> Result:
        """Return float32 scores [batch] and their gradients with respect to the pictures [batch, 3, height, width].

        Args:
            images: float32 RGB pictures in [0, 1], or what `Preprocess.fitted` returned.
            prompts: one a picture.
            prepared: whether it is the latter.

        Raises:
            RewardError: the request breaks the contract (InvalidRequestError), or the model raised (RewardFailedError).
        """
        return await self._answer(images, prompts, prepared, gradient=True)

    async def score(self, images: np.ndarray, prompts: Sequence[str], prepared: bool = False) -> Result:
        """Return the scores alone, in a tuple: what `score_and_gradient` returns first, for less than half the work."""
        return await self._answer(images, prompts, prepared, gradient=False)

    async def _answer(self, images: np.ndarray, prompts: Sequence[str], prepared: bool, gradient: bool) -> Result:
        try:
            await asyncio.to_thread(self._check, images, prompts, prepared)
            return await self._batcher.submit(images, prompts, self._ways[prepared, gradient])
        except RewardError as error:
            self._metrics.failed(error)
            raise
        except Exception as error:
            logger.exception("reward %r failed on %s", self._spec.name, images.shape)
            self._metrics.failed(error)
            raise RewardFailedError(self._spec.name, f"{type(error).__name__}: {error}") from error

    async def describe(self) -> dict[str, Any]:
        """Return what it is.

        `spec`; `identity`, what decides the scores; `rule`, its `Preprocess` or None; `self_test_score`;
        `differentiable`, whether it can be trained on; `versions` of what computes, by name.
        """
        return self._described

    async def check_health(self) -> None:
        """Judge the test picture again; if the score moved, RewardFailedError has Serve replace the replica."""
        test = self._test or asyncio.get_running_loop().create_task(self._test_again())
        done, _ = await asyncio.wait({test}, timeout=_HEALTH_CHECK_TIMEOUT_S / 2)
        # A replica that is busy with a long pass is not ill: what the test finds then counts at the next probe.
        self._test = None if done else test
        if done:
            test.result()

    async def _test_again(self) -> None:
        await self._batcher.alone(partial(self_test.check, self._spec, self._model, self._test_score))

    async def _judge_body(self, body: wire.Request) -> Result:
        return await self._answer(body.images, body.prompts, body.prepared, body.gradient)

    def _check(self, images: np.ndarray, prompts: Sequence[str], prepared: bool) -> None:
        check_request(self._spec.name, images, prompts, prepared)
        if not prepared:
            return
        if self._rule is None:
            raise InvalidRequestError(self._spec.name, "does not tell its preprocessing: send the pictures themselves")
        if images.shape[2:] != (self._rule.size, self._rule.size):
            expected = f"[batch, 3, {self._rule.size}, {self._rule.size}]"
            raise InvalidRequestError(self._spec.name, f"inputs has shape {images.shape}: send {expected}")

    def _judge(self, model: RewardModel, gradient: bool, images: np.ndarray, prompts: list[str]) -> Result:
        # Arrays from the object store are read-only and shared with other services: a model gets its own.
        batch = torch.from_numpy(images if images.flags.writeable else images.copy()).to(self._spec.device)
        judge = score_and_gradient if gradient else lambda *asked: (score(*asked),)
        return tuple(part.float().cpu().numpy() for part in judge(model, batch, prompts, self._spec.name))


def build(args: RewardSpec) -> Application:
    """Return the application of one reward, for `serve.run`, `serve deploy` and configs/serve alike."""
    spec = RewardSpec(**{name: getattr(args, name) for name in RewardSpec.model_fields})
    return serve.deployment(**options(spec))(RewardService).bind(spec.model_dump())


def options(spec: RewardSpec) -> dict[str, Any]:
    """Return what Serve must be told of a reward: replicas, queues, resources, health, draining, environment."""
    selector = {} if spec.node_label is None else {"label_selector": label_selector(spec.node_label)}
    actor = {"num_cpus": spec.num_cpus, "num_gpus": spec.num_gpus, **selector, **actor_options(spec)}
    replicas: dict[str, Any] = {"num_replicas": spec.num_replicas}
    if spec.max_replicas is not None:
        replicas = {
            "autoscaling_config": {
                "min_replicas": spec.num_replicas,
                "max_replicas": spec.max_replicas,
                "target_ongoing_requests": spec.target_ongoing_requests,
                "upscale_delay_s": spec.upscale_delay_s,
                "downscale_delay_s": spec.downscale_delay_s,
            }
        }
    return {
        # Enough in flight to fill one pass while another is computed, even if every request carries one picture.
        "max_ongoing_requests": 2 * spec.max_batch_images,
        "max_queued_requests": spec.max_queued_requests,
        "ray_actor_options": actor,
        "health_check_period_s": spec.health_check_period_s,
        "health_check_timeout_s": _HEALTH_CHECK_TIMEOUT_S,
        # A wrong checkpoint stays wrong: say so at once. Replicas that once ran are restarted for ever.
        "max_constructor_retry_count": 1,
        "graceful_shutdown_timeout_s": spec.drain_timeout_s,
        **replicas,
    }
