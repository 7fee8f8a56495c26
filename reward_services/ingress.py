"""The HTTP way in: POST a request of `wire`, GET what the service is. Serve's proxy calls it inside a replica."""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from reward_services.access import bears, is_loopback
from reward_services.protocol import MalformedRequestError, RewardError, UnauthorisedError
from reward_services.spec import HttpSpec
from reward_services.wire import MEDIA_TYPE, TOKEN_VARIABLE, decode_request, encode_answer, encode_error, too_large
from reward_services.wire import Request as Asked


@dataclass(frozen=True)
class HttpIngress:
    """Turns HTTP requests into calls, and errors into answers that name them.

    Attributes:
        reward: name for messages.
        settings: access and limits.
        judge: answers a request that is well formed.
        described: what a GET returns.
        failed: is told of every error that `judge` did not see.
    """

    reward: str
    settings: HttpSpec
    judge: Callable[[Asked], Awaitable[tuple[np.ndarray, ...]]]
    described: Mapping[str, Any]
    failed: Callable[[RewardError], None]

    async def answer(self, request: Request) -> Response:
        """Return the response to any HTTP request; raises nothing that a client can cause."""
        try:
            self._authorise(request)
            if request.method == "GET":
                return Response(json.dumps(self.described), media_type="application/json")
            asked = await self._read(request)
        except RewardError as error:
            self.failed(error)
            return _refusal(error)
        try:
            answer = await self.judge(asked)
        except RewardError as error:
            return _refusal(error)
        return Response(await asyncio.to_thread(encode_answer, *answer), media_type=MEDIA_TYPE)

    def _authorise(self, request: Request) -> None:
        token = os.environ.get(TOKEN_VARIABLE, "")
        if bears(request, token) or (self.settings.access == "loopback" and is_loopback(request)):
            return
        if not token and self.settings.access == "token":
            reason = f"has no token: set {TOKEN_VARIABLE} where the service runs, or http.access: loopback"
        else:
            reason = f"wants the header 'Authorization: Bearer ...' with its {TOKEN_VARIABLE}"
        raise UnauthorisedError(self.reward, reason)

    async def _read(self, request: Request) -> Asked:
        if request.method != "POST" or request.headers.get("content-type") != MEDIA_TYPE:
            found = f"{request.method} of {request.headers.get('content-type')}"
            raise MalformedRequestError(self.reward, f"{found}: POST {MEDIA_TYPE}, or GET the description")
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > self.settings.max_body_bytes:
            raise too_large(self.reward, int(declared), self.settings)
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > self.settings.max_body_bytes:
                raise too_large(self.reward, len(body), self.settings)
        return await asyncio.to_thread(decode_request, self.reward, bytes(body), self.settings)


def _refusal(error: RewardError) -> Response:
    status, body = encode_error(error)
    headers = {"www-authenticate": "Bearer"} if isinstance(error, UnauthorisedError) else None
    return Response(body, status, headers, media_type="application/json")
