"""A request that is sent again until its deadline, whatever carries it."""

import time
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from reward_services.protocol import RewardOverloadedError, RewardUnavailableError

Answer = tuple[np.ndarray, np.ndarray]
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0


class LostRequest(Exception):
    """The request got no answer, and may be sent again: it is a pure function of its arguments."""


class FullQueue(LostRequest):
    """The request was turned away before it was queued."""


@runtime_checkable
class Response(Protocol):
    """An attempt under way."""

    def result(self, timeout_s: float) -> Answer:
        """Wait for scores and gradients.

        Raises:
            TimeoutError: they did not come in time.
            LostRequest: they will not come.
            RewardError: the service said what is wrong.
        """
        ...

    def cancel(self) -> None:
        """Leave."""
        ...


class RetriedReward:
    """A reward on its way, sent again when a replica dies or a queue is full.

    Args:
        name: of the reward.
        send: starts an attempt, without waiting for it.
        deadline_s: how long `result` waits and retries before it raises.
        device: where the answer is wanted.
    """

    def __init__(self, name: str, send: Callable[[], Response], deadline_s: float, device: torch.device):
        self._name = name
        self._send = send
        self._deadline_s = deadline_s
        self._device = device
        self._response = send()
        self._answer: tuple[Tensor, Tensor] | None = None

    def result(self) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch 3 height width"]]:
        """Wait for and return the scores and `d score_i / d image_i`.

        Raises:
            RewardError: the service said what is wrong, or nobody answered before the deadline:
                RewardOverloadedError if the queue was full to the last, RewardUnavailableError otherwise.
        """
        if self._answer is None:
            scores, gradient = (torch.from_numpy(np.array(part)) for part in self._wait())
            self._answer = scores.to(self._device), gradient.to(self._device)
        return self._answer

    def _wait(self) -> Answer:
        deadline = time.monotonic() + self._deadline_s
        pause_s, attempts, trouble, kind = _FIRST_PAUSE_S, 1, "no replica answered", RewardUnavailableError
        while (remaining_s := deadline - time.monotonic()) > 0:
            try:
                return self._response.result(remaining_s)
            except TimeoutError:
                self._response.cancel()
                break
            except LostRequest as error:
                trouble = f"the last one ended with {error}"
                kind = RewardOverloadedError if isinstance(error, FullQueue) else RewardUnavailableError
            time.sleep(max(0.0, min(pause_s, deadline - time.monotonic())))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            self._response = self._send()
            attempts += 1
        raise kind(self._name, f"no answer within {self._deadline_s:g} s after {attempts} attempts ({trouble})")


def first_line(error: BaseException) -> str:
    """Return what an error says, in a line."""
    return (str(error).strip().splitlines() or [""])[0]
