"""The way to a reward from outside its cluster. Needs no Ray."""

import json
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
import urllib3
from jaxtyping import Float
from torch import Tensor
from urllib3.exceptions import HTTPError

from reward_services import wire
from reward_services.pending import Answer, FullQueue, LostRequest, Request
from reward_services.protocol import (
    PendingReward,
    PendingScores,
    RewardFailedError,
    RewardUnavailableError,
    check_request,
    in_a_line,
)

_CONNECTIONS = 8


class HttpClient:
    """A reward service behind a Serve proxy.

    Args:
        url: of the proxy, such as `http://127.0.0.1:8000`; use https where others can listen, for the token's sake.
        name: of the reward; its route is `/reward-<name>`.
        deadline_s: how long `result` waits and retries before it raises.
        token: bearer token; by default the environment's REWARD_SERVICES_TOKEN, if it is set.
        prepared: whether what is submitted are inputs that the client has preprocessed, see `PreparingClient`.
        application: its route, if it is another.
    """

    def __init__(
        self,
        url: str,
        name: str,
        deadline_s: float = 60.0,
        token: str | None = None,
        *,
        prepared: bool = False,
        application: str | None = None,
    ):
        self.name = name
        self._url = f"{url.rstrip('/')}/{application or f'reward-{name}'}"
        self._deadline_s = deadline_s
        token = os.environ.get(wire.TOKEN_VARIABLE) if token is None else token
        self._headers = {"content-type": wire.MEDIA_TYPE} | ({"authorization": f"Bearer {token}"} if token else {})
        self._prepared = prepared
        # Neither redirects, which would carry the token elsewhere, nor retries, which are counted here. The deadline is
        # `result`'s; threads that it left end a little later by themselves.
        self._pool = urllib3.PoolManager(maxsize=_CONNECTIONS, retries=False, timeout=deadline_s + 1.0)
        self._threads = ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix=f"reward-{name}")

    def submit(self, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]) -> PendingReward:
        """Send RGB pictures in [0, 1] and their prompts; does not wait."""
        return self._request(images, prompts, gradient=True).scores_and_gradient()

    def submit_for_scores(self, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]) -> PendingScores:
        """Send them for the scores alone; does not wait."""
        return self._request(images, prompts, gradient=False).scores()

    def _request(self, images: Tensor, prompts: Sequence[str], gradient: bool) -> Request:
        check_request(self.name, images, prompts, self._prepared)
        pixels = images.detach().to("cpu", torch.float32).contiguous().numpy()
        body = wire.Request(pixels, list(prompts), self._prepared, gradient)

        def send() -> Future[Answer]:
            return self._threads.submit(self._post, body)

        return Request(self.name, send, self._deadline_s, images.shape, images.device)

    def describe(self) -> dict[str, Any]:
        """Return what the service says of itself, see `RewardService.describe`; RewardError if it does not answer."""
        try:
            return json.loads(self._exchange("GET"))
        except LostRequest as error:
            raise RewardUnavailableError(self.name, f"{self._url} does not answer: {error}") from error
        except ValueError as error:
            raise RewardUnavailableError(self.name, f"{self._url} answers with something else") from error

    def _post(self, request: wire.Request) -> Answer:
        return wire.decode_answer(self.name, self._exchange("POST", wire.encode_request(request)))

    def _exchange(self, method: str, body: bytes | None = None) -> bytes:
        """Return the body of a successful answer; LostRequest if nobody answered, or somebody else."""
        try:
            response = self._pool.request(method, self._url, body=body, headers=self._headers)
        except HTTPError as error:
            raise LostRequest(in_a_line(error)) from error
        if response.status == 200:
            return response.data
        said = wire.decode_error(response.data)
        if said is not None:
            raise said
        if response.status == 404:  # also of a proxy that has just started, and knows no route yet
            raise LostRequest(f"nothing is served at {self._url}; deploy it with that route")
        if 300 <= response.status < 500 and response.status not in (408, 429):
            raise RewardFailedError(self.name, f"{self._url} answers with HTTP status {response.status}")
        if response.status == 503 and b"backpressure" in response.data:  # Serve's own words
            raise FullQueue("HTTP status 503: the queue is full")
        # 503 is a service between two replicas, 500 without words a replica that died, 502 and 504 come from proxies.
        raise LostRequest(f"HTTP status {response.status}")
