"""The contract of a reward: what goes in, what comes out, and what can go wrong.

A reward maps pictures and prompts to one score a picture. Row `i` of the scores depends on picture `i` and prompt `i`
alone, so that the gradient of the sum of scores holds every picture's own gradient. A failed reward is never a number:
it is a `RewardError` that names the reward.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from torch import Tensor

from reward_services.unicode import HALF_PAIR

PIXEL_TOLERANCE = 1e-3
"""How far outside [0, 1] a pixel may lie: a quarter of an 8-bit step, for those who compute in half precision."""

OVERSHOOT = 1.0
"""How far outside [0, 1] a pixel of a prepared input may lie: bicubic interpolation that is not clamped overshoots."""


class RewardError(RuntimeError):
    """A reward that could not be had."""

    def __init__(self, reward: str, reason: str):
        super().__init__(reward, reason)
        self.reward = reward
        self.reason = reason

    def __str__(self) -> str:
        return f"reward {self.reward!r}: {self.reason}"


class InvalidRequestError(RewardError, ValueError):
    """The request breaks the contract; sending it again is useless."""


class MalformedRequestError(InvalidRequestError):
    """The bytes that came over HTTP are no request."""


class RequestTooLargeError(InvalidRequestError):
    """The request exceeds a limit of the service on bytes, pictures or their sides."""


class UnauthorisedError(RewardError):
    """The service wants a bearer token, and this was not it."""


class RewardUnavailableError(RewardError):
    """Nobody answered: not deployed, deleted, or no replica before the deadline."""


class RewardOverloadedError(RewardUnavailableError):
    """The queue of the service was full until the deadline: it needs more replicas, or fewer who ask."""


class RewardFailedError(RewardError):
    """The reward model itself raised."""


class NoGradientError(RewardFailedError):
    """The scores do not depend on the pictures in a way that can be differentiated."""


@runtime_checkable
class RewardModel(Protocol):
    """Scores pictures for prompts; an `nn.Module` in eval mode, differentiable in the pictures."""

    def score(self, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]) -> Float[Tensor, " batch"]:
        """Return one score a picture, higher is better, for RGB pictures in [0, 1]."""
        ...


@runtime_checkable
class PendingReward(Protocol):
    """A reward on its way."""

    def result(self) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch 3 height width"]]:
        """Wait for and return the scores and `d score_i / d image_i`, both fp32 and detached.

        Raises:
            RewardError: the reward could not be had.
        """
        ...


@runtime_checkable
class PendingScores(Protocol):
    """Scores on their way."""

    def result(self) -> Float[Tensor, " batch"]:
        """Wait for and return the scores, fp32; RewardError if they could not be had."""
        ...


@runtime_checkable
class RewardClient(Protocol):
    """Asks for a reward without waiting for it, wherever it is computed.

    Both ways of asking raise InvalidRequestError, and send nothing, if the request breaks the contract.
    """

    @property
    def name(self) -> str:
        """What errors call the reward."""
        ...

    def submit(self, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]) -> PendingReward:
        """Send RGB pictures in [0, 1] and their prompts, to train on."""
        ...

    def submit_for_scores(self, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]) -> PendingScores:
        """Send them for the scores alone: nobody computes or carries a gradient."""
        ...


def in_a_line(error: BaseException) -> str:
    """Return the kind of an error and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def check_request(reward: str, images: object, prompts: object, prepared: bool = False) -> None:
    """Raise InvalidRequestError, which says what is wrong and what was expected, if a request breaks the contract.

    Every client asks this before it sends, and every service before it computes.

    Args:
        reward: name for the message.
        images: RGB pictures in [0, 1], [batch, 3, height, width]: a float32 array, or a tensor of any floating dtype.
        prompts: a list of as many strings, none of them blank.
        prepared: whether the images are what `Preprocess.fitted` returned, which may overshoot.
    """

    def refuse(reason: str) -> InvalidRequestError:
        return InvalidRequestError(reward, reason)

    if not isinstance(images, np.ndarray | Tensor):
        raise refuse(f"images is a {type(images).__name__}: send a tensor or a numpy array")
    if not (images.is_floating_point() if isinstance(images, Tensor) else images.dtype == np.float32):
        raise refuse(f"images has dtype {images.dtype}: send float32")
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise refuse(f"images has shape {tuple(images.shape)}: send [batch, 3, height, width], RGB, none of them 0")
    if not isinstance(prompts, list | tuple) or not all(isinstance(prompt, str) for prompt in prompts):
        raise refuse("prompts is not a list of strings: send one prompt a picture")
    if len(prompts) != len(images):
        raise refuse(f"{len(prompts)} prompts for {len(images)} pictures: send one prompt a picture")
    blank = [index for index, prompt in enumerate(prompts) if not prompt.strip()]
    if blank:
        raise refuse(f"prompts[{blank[0]}] is empty: a reward judges a picture against its prompt")
    torn = [index for index, prompt in enumerate(prompts) if HALF_PAIR.search(prompt)]
    if torn:
        raise refuse(
            f"prompts[{torn[0]}] has half of a surrogate pair, so it is no Unicode text: send whole characters"
        )
    pixels = images.detach() if isinstance(images, Tensor) else images
    low, high = float(pixels.min()), float(pixels.max())
    tolerance = OVERSHOOT if prepared else PIXEL_TOLERANCE
    if not (low >= -tolerance and high <= 1 + tolerance):  # also refuses NaN
        raise refuse(f"pixels lie in [{low}, {high}]: send finite values in [0, 1]")


def check_answer(
    reward: str, pictures: Sequence[int], answer: Sequence[np.ndarray | Tensor], gradient: bool = True
) -> None:
    """Raise RewardFailedError if an answer's shapes are not those of the contract.

    Whoever computes an answer asks this, and whoever receives one.

    Args:
        reward: name for the message.
        pictures: shape of the pictures, [batch, 3, height, width].
        answer: the scores and, if it was asked for, the gradient.
        gradient: whether it was.
    """
    found, expected = [tuple(part.shape) for part in answer], [(pictures[0],), *[tuple(pictures)] * gradient]
    if found != expected:
        reason = f"the answer to pictures of shape {tuple(pictures)} has the shapes {found}, not {expected}"
        raise RewardFailedError(reward, f"{reason}: a reward gives one score a picture, and a gradient of its shape")
