"""The arena over HTTP: JSON in and out, typed errors, limits, the page. Knows no Ray.

An error is `{"error": kind, "reason": sentence}`; it repeats nothing that came in, and tells nothing of the inside.
"""

import logging
import os
import secrets
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from fastapi import FastAPI, Request, Response
from fastapi import Path as PathParameter
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, Field
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reward_services.access import bears, is_loopback
from reward_services.unicode import HALF_PAIR
from slingstone.arena.client import TOKEN_VARIABLE
from slingstone.arena.errors import Contradicted, Refused, Unavailable
from slingstone.arena.gallery import Gallery
from slingstone.arena.pairs import Asked
from slingstone.config.arena import Door
from slingstone.preferences.parquet import write_parquet

PAGE = Path(__file__).parent / "page"
OPEN_HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' blob:; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
logger = logging.getLogger("ray.serve")

Voter = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DrawRequest(_Body):
    """One picture to be drawn."""

    generator: Annotated[str, Field(max_length=100)]
    prompt: str
    seed: Seed = 0


class ScoreRequest(_Body):
    """One picture to be judged."""

    picture: Digest
    prompt: str


class PairRequest(_Body):
    """A pair to be compared."""

    voter: Voter
    prompt: str | None = None


class VoteRequest(_Body):
    """A choice."""

    token: Annotated[str, Field(max_length=4096)]
    choice: Literal["left", "right", "tie", "both_bad"]
    seconds: Annotated[float, Field(ge=0, le=86_400)] | None = None


class TokenRequest(_Body):
    """A vote to be taken back."""

    token: Annotated[str, Field(max_length=4096)]


def door(gallery: Gallery) -> FastAPI:
    """Return the arena's web application."""
    settings = gallery.arena.door
    app = FastAPI(title=f"arena {gallery.arena.name}", openapi_url="/api/openapi.json", docs_url=None, redoc_url=None)
    _errors(app)
    _ways(app, gallery)
    app.mount("/", StaticFiles(directory=PAGE, html=True))
    app.middleware("http")(_guard(settings))
    app.add_middleware(_Limit, most=settings.max_body_kib * 1024)
    return app


def _ways(app: FastAPI, gallery: Gallery) -> None:
    """Add what can be asked."""

    @app.get("/api/health")
    def health() -> dict[str, Any]:
        """Tell whether the votes can be reached."""
        return {"status": "ok", "votes": gallery.store.count()}

    @app.get("/api/arena")
    def about() -> dict[str, Any]:
        """Tell which generators, prompts and rewards there are."""
        return gallery.about()

    @app.post("/api/draw")
    async def draw(body: DrawRequest) -> dict[str, Any]:
        """Draw a picture; the same generator, prompt and seed give the same picture."""
        prompt = _prompt(body.prompt, gallery)
        _, drawing = await gallery.drawn(Asked(body.generator, prompt, body.seed))
        facts = ("seed", "seconds", "network_evaluations", "weights", "steps", "sampler")
        return {"picture": drawing.digest} | {name: getattr(drawing, name) for name in facts}

    @app.get("/api/pictures/{digest}.png", response_class=Response)
    def picture(digest: Annotated[Digest, PathParameter()]) -> Response:
        """Return a picture by its digest."""
        data = gallery.store.picture(digest)
        if data is None:
            raise HTTPException(404, "there is no such picture")
        return Response(data, media_type="image/png", headers={"cache-control": "private, max-age=31536000, immutable"})

    @app.post("/api/scores")
    async def scores(body: ScoreRequest) -> dict[str, float]:
        """Judge a picture by each reward."""
        data = gallery.store.picture(body.picture)
        if data is None:
            raise HTTPException(404, "there is no such picture")
        return dict(await gallery.score(data, _prompt(body.prompt, gallery)))

    @app.post("/api/pairs")
    async def pair(body: PairRequest) -> dict[str, Any]:
        """Hand out two pictures and the token to vote on them with."""
        if body.prompt is None:
            return await gallery.pair(body.voter)
        return await gallery.pair(body.voter, _prompt(body.prompt, gallery))

    @app.post("/api/votes")
    def vote(body: VoteRequest) -> dict[str, Any]:
        """Take a vote; it is on disk when this answers, once, however often it is sent."""
        return gallery.vote(body.token, body.choice, body.seconds)

    @app.post("/api/votes/undo")
    def undo(body: TokenRequest) -> dict[str, Any]:
        """Take a vote back, and hand out its pair again."""
        return gallery.take_back(body.token)

    @app.get("/api/results")
    def results() -> dict[str, Any]:
        """Tell what the votes say."""
        return gallery.results()

    @app.get("/api/votes.parquet", response_class=FileResponse)
    def export() -> FileResponse:
        """Return the votes as a table with pickapic_v2's columns, pictures included."""
        with tempfile.NamedTemporaryFile(suffix=".parquet", delete=False) as file:
            write_parquet(file.name, gallery.store.preferences())
        remove = BackgroundTask(Path(file.name).unlink)
        return FileResponse(file.name, filename=f"{gallery.arena.name}.parquet", background=remove)


def _prompt(text: str, gallery: Gallery) -> str:
    """Return a prompt that can be drawn."""
    most = gallery.arena.door.max_prompt_characters
    if not text.strip():
        raise Refused("prompt: is empty; say what to draw")
    if len(text) > most:
        raise Refused(f"prompt: has {len(text)} characters; {most} are the most")
    if HALF_PAIR.search(text) or "\0" in text:
        raise Refused("prompt: is no Unicode text; send another")
    return text


def _errors(app: FastAPI) -> None:
    """Have every error answered in one form."""

    @app.exception_handler(RequestValidationError)
    def malformed(_: Request, error: RequestValidationError) -> Response:
        found = error.errors()[0]
        field = ".".join(str(part) for part in found["loc"][1:] if isinstance(part, str)) or "body"
        return refusal(422, "InvalidRequestError", f"{field[:100]}: {found['msg']}" if field.isprintable() else "body")

    @app.exception_handler(HTTPException)
    def known(_: Request, error: HTTPException) -> Response:
        return refusal(error.status_code, "NotFoundError" if error.status_code == 404 else "RefusedError", error.detail)

    @app.exception_handler(Contradicted)
    def contradicted(_: Request, error: Contradicted) -> Response:
        return refusal(409, "ContradictedError", str(error))

    @app.exception_handler(Refused)
    def invalid(_: Request, error: Refused) -> Response:
        return refusal(422, "InvalidRequestError", str(error))

    @app.exception_handler(Unavailable)
    def unavailable(_: Request, error: Unavailable) -> Response:
        return refusal(503, "UnavailableError", str(error), {"retry-after": "1"})


def refusal(status: int, kind: str, reason: str, headers: dict[str, str] | None = None) -> Response:
    """Return an error as JSON."""
    return JSONResponse({"error": kind, "reason": reason}, status, headers)


def _guard(settings: Door) -> Callable[[Request, Callable[[Request], Awaitable[Response]]], Awaitable[Response]]:
    """Return what stands before every request: who may come, how often, and that no error leaves as it is."""
    rate = _Rate(settings.requests_per_minute)

    async def guard(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        if request.url.path.startswith("/api/") and request.url.path != "/api/health":
            if (refused := _refused(request, settings)) is not None:
                return refused
            wait = rate.wait_s(request.client.host if request.client else "")
            if wait:
                return refusal(429, "TooManyRequestsError", "come again later", {"retry-after": f"{wait:.0f}"})
        try:
            response = await answer(request)
        except Exception:
            name = secrets.token_hex(4)
            logger.exception("arena: request %s failed", name)
            return refusal(500, "ArenaFailedError", f"the arena failed; its log tells why under {name}")
        response.headers.update(OPEN_HEADERS)
        return response

    return guard


def _refused(request: Request, settings: Door) -> Response | None:
    """Return the refusal of who may not come in."""
    if bears(request, os.environ.get(TOKEN_VARIABLE, "")) or (settings.access == "loopback" and _is_local(request)):
        return None
    wanted = f"wants the header 'Authorization: Bearer ...' with its {TOKEN_VARIABLE}"
    return refusal(401, "UnauthorisedError", wanted, {"www-authenticate": "Bearer"})


def _is_local(request: Request) -> bool:
    """Return whether somebody of this machine asks, and no page of elsewhere through his browser."""
    host, origin = request.headers.get("host", ""), request.headers.get("origin")
    try:
        named = urlsplit(f"//{host}").hostname in LOCAL_NAMES
        same = origin is None or urlsplit(origin).netloc == host
    except ValueError:
        return False
    return is_loopback(request) and named and same


class _Rate:
    """Requests of each address: a bucket that fills as time goes."""

    def __init__(self, per_minute: int) -> None:
        self._size, self._per_s = float(per_minute), per_minute / 60
        self._left: dict[str, tuple[float, float]] = {}

    def wait_s(self, address: str) -> float:
        """Return 0 and count a request, or how long its sender should wait."""
        now = time.monotonic()
        left, since = self._left.get(address, (self._size, now))
        left = min(self._size, left + (now - since) * self._per_s)
        if left < 1:
            return max(1.0, (1 - left) / self._per_s)
        if len(self._left) > 10_000:  # the full ones are as good as unknown
            self._left = {name: found for name, found in self._left.items() if now - found[1] < 60}
        self._left[address] = left - 1, now
        return 0.0


class _Limit:
    """Refuses bodies beyond a size before they are read whole."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app, self._most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and count its bytes."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return  # gone
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._most:
                reason = f"is longer than {self._most} bytes"
                await refusal(413, "RequestTooLargeError", reason)(scope, receive, send)
                return
        whole: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def read() -> Message:
            return whole.pop() if whole else await receive()

        await self._app(scope, read, send)
