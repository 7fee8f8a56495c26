"""Requests and answers as bytes, for clients outside the cluster.

A request is a safetensors file with one float32 tensor, `images` (RGB pictures in [0, 1], [batch, 3, height, width]) or
`inputs` (the same after the reward's own `Preprocess.fit`), and in its metadata the prompts as a JSON list and, if the
scores alone are wanted, `gradient` as `false`. An answer is one with the tensors `scores` [batch] and, unless it was
not wanted, `gradient` (of the request's shape). An error is a JSON object.
"""

import json
from dataclasses import dataclass

import numpy as np
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from reward_services.protocol import (
    InvalidRequestError,
    MalformedRequestError,
    RequestTooLargeError,
    RewardError,
    RewardFailedError,
    RewardOverloadedError,
    RewardUnavailableError,
    UnauthorisedError,
)
from reward_services.spec import HttpSpec

MEDIA_TYPE = "application/x-safetensors"
TOKEN_VARIABLE = "REWARD_SERVICES_TOKEN"
"""Name of the environment variable that holds the bearer token, at the service and at its clients."""

_MAX_HEADER_BYTES = 2**22
_PARTS = ("scores", "gradient")
_STATUS: dict[type[RewardError], int] = {
    MalformedRequestError: 400,
    RequestTooLargeError: 413,
    InvalidRequestError: 422,
    UnauthorisedError: 401,
    RewardUnavailableError: 503,
    RewardOverloadedError: 503,
    RewardFailedError: 500,
}
_KINDS = {kind.__name__: kind for kind in _STATUS}


@dataclass(frozen=True)
class Request:
    """What a client asks: float32 pictures, [batch, 3, height, width], and a prompt for each."""

    images: np.ndarray
    prompts: list[str]
    prepared: bool = False
    """Whether the pictures are inputs that the client has preprocessed."""
    gradient: bool = True
    """Whether the gradient is wanted, too."""


def encode_request(request: Request) -> bytes:
    """Return the body of a request."""
    name = "inputs" if request.prepared else "images"
    metadata = {"prompts": json.dumps(request.prompts), **({} if request.gradient else {"gradient": "false"})}
    return save({name: request.images}, metadata)


def decode_request(reward: str, body: bytes, limits: HttpSpec) -> Request:
    """Return the request that a body holds; whether it keeps the contract is for `check_request` to say.

    Raises:
        InvalidRequestError: it is no request (MalformedRequestError), too large (RequestTooLargeError), or not float32.
    """
    if len(body) > limits.max_body_bytes:
        raise too_large(reward, len(body), limits)
    metadata, tensors = _parse(reward, body)
    if set(tensors) not in ({"images"}, {"inputs"}):
        found = ", ".join(sorted(tensors)) or "none"
        raise MalformedRequestError(reward, f"the body holds the tensors {found}: send 'images' alone, or 'inputs'")
    ((name, images),) = tensors.items()
    shape = images.shape
    if shape and shape[0] > limits.max_images:
        raise RequestTooLargeError(reward, f"{shape[0]} pictures: send at most {limits.max_images} in a request")
    if max(shape[2:], default=0) > limits.max_side:
        raise RequestTooLargeError(reward, f"pictures of shape {shape[1:]}: sides are at most {limits.max_side}")
    try:
        prompts = json.loads(metadata["prompts"])
    except (KeyError, ValueError, RecursionError) as error:
        reason = "metadata 'prompts' is absent or no JSON: send a list of strings"
        raise MalformedRequestError(reward, reason) from error
    if not isinstance(prompts, list):
        raise MalformedRequestError(reward, "metadata 'prompts' is no JSON list: send a list of strings")
    if (gradient := metadata.get("gradient", "true")) not in ("true", "false"):
        raise MalformedRequestError(reward, f"metadata 'gradient' is {gradient[:50]!r}: send true or false")
    return Request(images, prompts, name == "inputs", gradient == "true")


def encode_answer(*answer: np.ndarray) -> bytes:
    """Return the body of an answer: the scores and, if it is wanted, the gradient."""
    return save(dict(zip(_PARTS, answer, strict=False)))


def decode_answer(reward: str, body: bytes) -> tuple[np.ndarray, ...]:
    """Return what a body holds; RewardFailedError if that is no answer. Its shapes are for `check_answer` to judge."""
    try:
        _, tensors = _parse(reward, body)
    except InvalidRequestError as error:
        raise RewardFailedError(reward, f"the answer cannot be read: {error.reason}") from error
    if set(tensors) not in ({"scores"}, set(_PARTS)):
        raise RewardFailedError(reward, f"the answer holds {', '.join(sorted(tensors)) or 'nothing'}")
    return tuple(tensors[part] for part in _PARTS if part in tensors)


def encode_error(error: RewardError) -> tuple[int, bytes]:
    """Return the HTTP status and the body of an error."""
    kind = type(error) if type(error) in _STATUS else RewardFailedError
    body = {"error": kind.__name__, "reward": error.reward, "reason": error.reason}
    return _STATUS[kind], json.dumps(body).encode()


def decode_error(body: bytes) -> RewardError | None:
    """Return the error that the service put into words; None if somebody on the way answered in its place."""
    try:
        found = json.loads(body)
        return _KINDS[found["error"]](str(found["reward"]), str(found["reason"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def too_large(reward: str, num_bytes: int, limits: HttpSpec) -> RequestTooLargeError:
    """Return the error of a body that is too long."""
    remedy = f"send at most {limits.max_body_bytes}, as fewer pictures a request"
    return RequestTooLargeError(reward, f"the body has {num_bytes} bytes: {remedy}")


def _parse(reward: str, body: bytes) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Return metadata and tensors of a safetensors file whose tensors are all float32."""
    length = int.from_bytes(body[:8], "little")
    if length > _MAX_HEADER_BYTES:
        raise MalformedRequestError(reward, f"the header claims {length} bytes: send a safetensors file")
    try:
        described = deserialize(body)
        header = json.loads(body[8 : 8 + length])  # of its metadata the library tells nothing
    except (SafetensorError, ValueError) as error:
        reason = f"the body of {len(body)} bytes is no safetensors file: {error}"
        raise MalformedRequestError(reward, reason) from error
    tensors: dict[str, np.ndarray] = {}
    for name, entry in described:
        if set(header[name]) != {"dtype", "shape", "data_offsets"} or len(entry["shape"]) > 8 or 0 in entry["shape"]:
            reason = "has a size of 0, too many sizes, or is not described as in a safetensors file"
            raise MalformedRequestError(reward, f"tensor {name[:50]!r} {reason}")
        if entry["dtype"] != "F32":
            raise InvalidRequestError(reward, f"{name[:50]} has dtype {entry['dtype']}: send float32 (F32)")
        tensors[name] = np.frombuffer(entry["data"], dtype="<f4").reshape(entry["shape"])
    return header.get("__metadata__") or {}, tensors
