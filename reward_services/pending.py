"""Rewards on their way: found when they are first asked for, and sent again until a deadline, whatever carries them."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from reward_services.protocol import RewardOverloadedError, RewardUnavailableError, check_answer

Answer = tuple[np.ndarray, ...]
"""Scores and, if it was asked for, the gradient."""
Found = TypeVar("Found")
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0


class LostRequest(Exception):
    """The request got no answer, and may be sent again: it is a pure function of its arguments."""


class FullQueue(LostRequest):
    """The request was turned away before it was queued."""


@runtime_checkable
class Response(Protocol):
    """An attempt under way; a `concurrent.futures.Future` is one."""

    def result(self, timeout_s: float, /) -> Answer:
        """Wait for the answer.

        Raises:
            TimeoutError: it did not come in time.
            LostRequest: it will not come.
            RewardError: the service said what is wrong.
        """
        ...

    def cancel(self) -> object:
        """Leave."""
        ...


@dataclass
class Lazy(Generic[Found]):
    """What a function finds when its result is first asked for; the function is called again if it raised."""

    find: Callable[[], Found]
    _found: Found | None = None

    def result(self) -> Found:
        """Return what the function returns; raise what it raises."""
        if self._found is None:
            self._found = self.find()
        return self._found


@dataclass(frozen=True)
class Request:
    """A request that is sent now, and again when a replica dies or a queue is full.

    By hand: urllib3's Retry counts attempts where there is a deadline here, and does not carry Serve's handles.

    Attributes:
        name: of the reward.
        send: starts an attempt, without waiting for it.
        deadline_s: how long a result waits and retries before it raises RewardOverloadedError, if the queue was full
            to the last, or else RewardUnavailableError.
        pictures: shape of what is judged.
        device: where the answer is wanted.
    """

    name: str
    send: Callable[[], Response]
    deadline_s: float
    pictures: Sequence[int]
    device: torch.device

    def scores_and_gradient(self) -> Lazy[tuple[Float[Tensor, " batch"], Float[Tensor, "batch 3 height width"]]]:
        """Send it; whoever sends asks for both."""
        first = self.send()

        def find() -> tuple[Tensor, Tensor]:
            scores, gradient = self._answer(first, gradient=True)
            return scores, gradient

        return Lazy(find)

    def scores(self) -> Lazy[Float[Tensor, " batch"]]:
        """Send it; whoever sends asks for the scores alone."""
        first = self.send()
        return Lazy(lambda: self._answer(first, gradient=False)[0])

    def _answer(self, first: Response, gradient: bool) -> list[Tensor]:
        answer = self._wait(first)
        check_answer(self.name, self.pictures, answer, gradient)
        return [torch.from_numpy(np.array(part)).to(self.device) for part in answer]

    def _wait(self, response: Response) -> Answer:
        deadline = time.monotonic() + self.deadline_s
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
            response = self.send()
            attempts += 1
        raise kind(self.name, f"no answer within {self.deadline_s:g} s after {attempts} attempts ({trouble})")
