"""Ways to a reward, behind one interface: a model in this process, or a service of this Ray cluster.

`http_client` has the third, a service outside the cluster.
"""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from jaxtyping import Float
from ray import serve
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from torch import Tensor

from reward_services.gradient import differentiable as differentiable
from reward_services.gradient import score, score_and_gradient
from reward_services.pending import Answer, Found, FullQueue, Lazy, LostRequest, Request
from reward_services.protocol import (
    PendingReward,
    PendingScores,
    RewardError,
    RewardFailedError,
    RewardModel,
    RewardUnavailableError,
    check_request,
    in_a_line,
)

# Where Serve itself gives up.
_TRANSIENT = (RayActorError, ObjectLostError, BackPressureError, DeploymentUnavailableError, TaskCancelledError)


@dataclass(frozen=True)
class InProcessClient:
    """A reward model in this process, on its own device: for tests, small rewards and evaluation.

    Attributes:
        model: frozen, in eval mode.
        name: what errors call it.
    """

    model: RewardModel
    name: str = "in-process"

    def submit(self, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]) -> PendingReward:
        """Return the request; it is computed when its result is asked for."""
        return self._lazy(score_and_gradient, images, prompts)

    def submit_for_scores(self, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]) -> PendingScores:
        """Return the request for scores alone."""
        return self._lazy(score, images, prompts)

    def _lazy(self, judge: Callable[..., Found], images: Tensor, prompts: Sequence[str]) -> Lazy[Found]:
        check_request(self.name, images, prompts)
        pixels, asked = images.detach().to(torch.promote_types(images.dtype, torch.float32)), list(prompts)

        def find() -> Found:
            try:
                return judge(self.model, pixels, asked, self.name)
            except RewardError:
                raise
            except Exception as error:
                raise RewardFailedError(self.name, f"{type(error).__name__}: {error}") from error

        return Lazy(find)


class ImageStore:
    """Puts each batch of pictures into the object store once, however many services it is sent to.

    Share one among the clients of one process.

    By default `put` is Ray's: it stores an array and returns what a service can be sent instead.
    """

    def __init__(self, put: Callable[[np.ndarray], Any] = ray.put) -> None:
        self._put = put
        self._images: Callable[[], Tensor | None] = lambda: None
        self._version = -1
        self._reference: Any = None

    def put(self, images: Tensor) -> Any:
        """Return a reference to the pictures as a float32 array; the last ones are remembered."""
        if self._reference is None or self._images() is not images or self._version != images._version:
            pixels = images.detach().to("cpu", torch.float32).contiguous().numpy()
            self._reference = self._put(pixels)
            self._images, self._version = weakref.ref(images), images._version
        return self._reference


class ServeClient:
    """A reward service of this process's Ray cluster; RewardUnavailableError if no such application is deployed.

    Args:
        name: of the reward; its Serve application is `reward-<name>`.
        deadline_s: how long `result` waits and retries before it raises.
        store: shares one copy of the pictures with the clients of other rewards.
        prepared: whether what is submitted are inputs that the client has preprocessed, see `PreparingClient`.
        application: its name, if it is another.
    """

    def __init__(
        self,
        name: str,
        deadline_s: float = 60.0,
        store: ImageStore | None = None,
        *,
        prepared: bool = False,
        application: str | None = None,
    ):
        self.name = name
        self._deadline_s = deadline_s
        self._store = store or ImageStore()
        self._prepared = prepared
        self._application = application or f"reward-{name}"
        self._handle = _handle(name, self._application)

    def submit(self, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]) -> PendingReward:
        """Send RGB pictures in [0, 1] and their prompts; does not wait."""
        return self._request("score_and_gradient", images, prompts).scores_and_gradient()

    def submit_for_scores(self, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]) -> PendingScores:
        """Send them for the scores alone; does not wait."""
        return self._request("score", images, prompts).scores()

    def _request(self, method: str, images: Tensor, prompts: Sequence[str]) -> Request:
        check_request(self.name, images, prompts, self._prepared)
        reference = self._store.put(images)
        arguments = (reference, list(prompts), *((True,) if self._prepared else ()))

        def send() -> _ServeResponse:
            return _ServeResponse(self.name, self._application, getattr(self._handle, method).remote(*arguments))

        return Request(self.name, send, self._deadline_s, images.shape, images.device)

    def describe(self) -> dict[str, Any]:
        """Return what the service says of itself, see `RewardService.describe`; RewardError if it does not answer."""
        try:
            return self._handle.describe.remote().result(timeout_s=self._deadline_s)
        except (TimeoutError, *_TRANSIENT) as error:
            raise RewardUnavailableError(self.name, f"does not describe itself: {in_a_line(error)}") from error


@dataclass(frozen=True)
class _ServeResponse:
    """One call of a handle."""

    name: str
    application: str
    response: Any

    def result(self, timeout_s: float, /) -> Answer:
        try:
            return self.response.result(timeout_s=timeout_s)
        except BackPressureError as error:
            raise FullQueue(in_a_line(error)) from error
        except _TRANSIENT as error:
            _handle(self.name, self.application)  # raises at once if the whole application is gone
            raise LostRequest(in_a_line(error)) from error
        except RayTaskError as error:
            said = error.cause
            raise said if isinstance(said, RewardError) else RewardFailedError(self.name, in_a_line(said)) from error

    def cancel(self) -> None:
        self.response.cancel()


def _handle(name: str, application: str) -> Any:
    """Return Serve's handle of a reward's application."""
    try:
        return serve.get_app_handle(application)
    except RayServeException as error:
        raise RewardUnavailableError(
            name, f"no Serve application {application!r} is running; deploy it, or let the job manage its rewards"
        ) from error
