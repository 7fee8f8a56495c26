"""Ways to a reward, behind one interface: a model in this process, or a service of this Ray cluster."""

import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

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
    RewardUnavailableError,
)

__all__ = [
    "ImageStore",
    "InProcessClient",
    "InvalidRequestError",
    "PendingReward",
    "RewardClient",
    "RewardError",
    "RewardFailedError",
    "RewardUnavailableError",
    "ServeClient",
    "differentiable",
]

# A request is a pure function of its arguments, so it may be sent again wherever Serve itself gives up.
_TRANSIENT = (RayActorError, ObjectLostError, BackPressureError, DeploymentUnavailableError, TaskCancelledError)
_FIRST_RETRY_S, _LONGEST_RETRY_S = 0.05, 1.0


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

    Raises:
        RewardUnavailableError: no such application is deployed.
    """

    def __init__(self, name: str, deadline_s: float = 60.0, store: ImageStore | None = None):
        self.name = name
        self._deadline_s = deadline_s
        self._store = store or ImageStore()
        self._handle = _handle(name)

    def submit(self, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]) -> PendingReward:
        """Send RGB pictures in [0, 1] and their prompts; does not wait."""
        reference = self._store.put(images)
        prompts = list(prompts)

        def send() -> _Response:
            return self._handle.score_and_gradient.remote(reference, prompts)

        return _ServeReward(self.name, send, self._deadline_s, images.device)


@runtime_checkable
class _Response(Protocol):
    """What is used of Serve's `DeploymentResponse`."""

    def result(self, *, timeout_s: float | None = None) -> Any: ...

    def cancel(self) -> None: ...


class _ServeReward:
    """A request to a service, sent again when a replica dies or the queue is full."""

    def __init__(self, name: str, send: Callable[[], _Response], deadline_s: float, device: torch.device):
        self._name = name
        self._send = send
        self._deadline_s = deadline_s
        self._device = device
        self._response = send()
        self._answer: tuple[Tensor, Tensor] | None = None

    def result(self) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch 3 height width"]]:
        if self._answer is None:
            scores, gradient = (torch.from_numpy(np.array(part)) for part in self._wait())
            self._answer = scores.to(self._device), gradient.to(self._device)
        return self._answer

    def _wait(self) -> tuple[np.ndarray, np.ndarray]:
        deadline = time.monotonic() + self._deadline_s
        pause_s, attempts, trouble = _FIRST_RETRY_S, 1, "no replica answered"
        while (remaining_s := deadline - time.monotonic()) > 0:
            try:
                return self._response.result(timeout_s=remaining_s)
            except TimeoutError:
                self._response.cancel()
                break
            except _TRANSIENT as error:
                trouble = f"the last one ended with {type(error).__name__}: {_first_line(error)}"
            except RayTaskError as error:
                raise _cause(self._name, error) from error
            _handle(self._name)  # raises at once if the whole application is gone
            time.sleep(max(0.0, min(pause_s, deadline - time.monotonic())))
            pause_s = min(2 * pause_s, _LONGEST_RETRY_S)
            self._response = self._send()
            attempts += 1
        raise RewardUnavailableError(
            self._name, f"no answer within {self._deadline_s:g} s after {attempts} attempts ({trouble})"
        )


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
    return RewardFailedError(name, f"{type(cause).__name__}: {_first_line(cause)}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]
