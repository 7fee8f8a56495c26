"""Ways to a reward, behind one interface: a model in this process, or a service of this Ray cluster.

`http_client` has the third, a service outside the cluster.
"""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import ray
import torch
from jaxtyping import Float
from ray import serve
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from torch import Tensor

from reward_services.gradient import differentiable, score_and_gradient
from reward_services.protocol import (
    InvalidRequestError,
    PendingReward,
    RewardClient,
    RewardError,
    RewardFailedError,
    RewardModel,
    RewardOverloadedError,
    RewardUnavailableError,
)
from reward_services.retry import Answer, FullQueue, LostRequest, RetriedReward, first_line

__all__ = [
    "ImageStore",
    "InProcessClient",
    "InvalidRequestError",
    "PendingReward",
    "RewardClient",
    "RewardError",
    "RewardFailedError",
    "RewardOverloadedError",
    "RewardUnavailableError",
    "ServeClient",
    "differentiable",
]

# Where Serve itself gives up.
_TRANSIENT = (RayActorError, ObjectLostError, BackPressureError, DeploymentUnavailableError, TaskCancelledError)


class InProcessClient:
    """A reward model in this process, on its own device: for tests, small rewards and evaluation.

    Args:
        model: frozen, in eval mode.
        name: what errors call it.
    """

    def __init__(self, model: RewardModel, name: str = "in-process"):
        self._model = model
        self._name = name

    def submit(self, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]) -> PendingReward:
        """Return the request; it is computed when its result is asked for."""
        pixels = images.detach().to(torch.promote_types(images.dtype, torch.float32))
        return _InProcessReward(self._model, self._name, pixels, list(prompts))


class _InProcessReward:
    def __init__(self, model: RewardModel, name: str, images: Tensor, prompts: list[str]):
        self._model = model
        self._name = name
        self._images = images
        self._prompts = prompts
        self._answer: tuple[Tensor, Tensor] | None = None

    def result(self) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch 3 height width"]]:
        if self._answer is None:
            if len(self._prompts) != len(self._images):
                raise InvalidRequestError(
                    self._name, f"{len(self._prompts)} prompts for {len(self._images)} pictures: send one a picture"
                )
            try:
                self._answer = score_and_gradient(self._model, self._images, self._prompts)
            except Exception as error:
                raise RewardFailedError(self._name, f"{type(error).__name__}: {error}") from error
        return self._answer


class ImageStore:
    """Puts each batch of pictures into the object store once, however many services it is sent to.

    Share one among the clients of one process.

    Args:
        put: stores an array and returns what a service can be sent instead.
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
    """A reward service of the Ray cluster that this process is connected to.

    Args:
        name: of the reward; its Serve application is `reward-<name>`.
        deadline_s: how long `result` waits and retries before it raises.
        store: shares one copy of the pictures with the clients of other rewards.
        prepared: whether what is submitted are inputs that the client has preprocessed, see `PreparingClient`.

    Raises:
        RewardUnavailableError: no such application is deployed.
    """

    def __init__(self, name: str, deadline_s: float = 60.0, store: ImageStore | None = None, *, prepared: bool = False):
        self.name = name
        self._deadline_s = deadline_s
        self._store = store or ImageStore()
        self._prepared = prepared
        self._handle = _handle(name)

    def submit(self, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]) -> PendingReward:
        """Send RGB pictures in [0, 1] and their prompts; does not wait."""
        reference = self._store.put(images)
        arguments = (reference, list(prompts), *((True,) if self._prepared else ()))

        def send() -> _ServeResponse:
            return _ServeResponse(self.name, self._handle.score_and_gradient.remote(*arguments))

        return RetriedReward(self.name, send, self._deadline_s, images.device)

    def describe(self) -> dict[str, Any]:
        """Return what the service says of itself, see `RewardService.describe`.

        Raises:
            RewardUnavailableError: no answer before the deadline.
        """
        try:
            return self._handle.describe.remote().result(timeout_s=self._deadline_s)
        except (TimeoutError, *_TRANSIENT) as error:
            reason = f"does not describe itself: {type(error).__name__}: {first_line(error)}"
            raise RewardUnavailableError(self.name, reason) from error


class _ServeResponse:
    """One call of a handle."""

    def __init__(self, name: str, response: Any):
        self._name = name
        self._response = response

    def result(self, timeout_s: float) -> Answer:
        try:
            return self._response.result(timeout_s=timeout_s)
        except BackPressureError as error:
            raise FullQueue(f"{type(error).__name__}: {first_line(error)}") from error
        except _TRANSIENT as error:
            _handle(self._name)  # raises at once if the whole application is gone
            raise LostRequest(f"{type(error).__name__}: {first_line(error)}") from error
        except RayTaskError as error:
            raise _cause(self._name, error) from error

    def cancel(self) -> None:
        self._response.cancel()


def _handle(name: str) -> Any:
    """Return Serve's handle of a reward's application."""
    try:
        return serve.get_app_handle(f"reward-{name}")
    except RayServeException as error:
        raise RewardUnavailableError(
            name, f"no Serve application 'reward-{name}' is running; deploy it, or let the job manage its rewards"
        ) from error


def _cause(name: str, error: RayTaskError) -> RewardError:
    """Return what the service raised, without Ray's wrapping."""
    cause = error.cause
    if isinstance(cause, RewardError):
        return cause
    return RewardFailedError(name, f"{type(cause).__name__}: {first_line(cause)}")
