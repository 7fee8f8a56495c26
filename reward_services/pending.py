"""Rewards on their way: found when they are first asked for, and sent again until a deadline, whatever carries them."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from reward_services.protocol import RewardOverloadedError, RewardUnavailableError, check_answer

Answer = tuple[np.ndarray, np.ndarray]
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0


class LostRequest(Exception):
    """The request got no answer, and may be sent again: it is a pure function of its arguments."""


class FullQueue(LostRequest):
    """The request was turned away before it was queued."""


@runtime_checkable
class Response(Protocol):
    """An attempt under way; a `concurrent.futures.Future` is one."""

    def result(self, timeout_s: float, /) -> Answer:
        """Wait for scores and gradients.

        Raises:
            TimeoutError: they did not come in time.
            LostRequest: they will not come.
            RewardError: the service said what is wrong.
        """
        ...

    def cancel(self) -> object:
        """Leave."""
        ...


@dataclass
class LazyReward:
    """A reward that a function finds when its result is first asked for; the function is called again if it raised."""

    find: Callable[[], tuple[Tensor, Tensor]]
    _answer: tuple[Tensor, Tensor] | None = None

    def result(self) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch 3 height width"]]:
        """Return the scores and `d score_i / d image_i`; raise what the function raises."""
        if self._answer is None:
            self._answer = self.find()
        return self._answer


def retried(name: str, send: Callable[[], Response], deadline_s: float, images: Tensor) -> LazyReward:
    """Send a request now, and again when a replica dies or a queue is full.

    By hand: urllib3's Retry counts attempts where there is a deadline here, and does not carry Serve's handles.

    Args:
        name: of the reward.
        send: starts an attempt, without waiting for it.
        deadline_s: how long `result` waits and retries before it raises RewardOverloadedError, if the queue was full
            to the last, or else RewardUnavailableError.
        images: what is judged, on the device where the answer is wanted.
    """
    first, shape, device = send(), images.shape, images.device

    def find() -> tuple[Tensor, Tensor]:
        answer = _wait(name, first, send, deadline_s)
        check_answer(name, shape, answer)
        scores, gradient = (torch.from_numpy(np.array(part)).to(device) for part in answer)
        return scores, gradient

    return LazyReward(find)


def _wait(name: str, response: Response, send: Callable[[], Response], deadline_s: float) -> Answer:
    deadline = time.monotonic() + deadline_s
    pause_s, attempts, trouble, kind = _FIRST_PAUSE_S, 1, "no replica answered", RewardUnavailableError
    while (remaining_s := deadline - time.monotonic()) > 0:
        try:
            return response.result(remaining_s)
        except TimeoutError:
            response.cancel()
            break
        except LostRequest as error:
            trouble = f"the last one ended with {error}"
            kind = RewardOverloadedError if isinstance(error, FullQueue) else RewardUnavailableError
        time.sleep(max(0.0, min(pause_s, deadline - time.monotonic())))
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        response = send()
        attempts += 1
    raise kind(name, f"no answer within {deadline_s:g} s after {attempts} attempts ({trouble})")
