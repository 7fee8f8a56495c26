"""The way into an arena from a program. Needs neither Ray nor torch."""

import json
import os
from pathlib import Path
from typing import Any, Literal

import urllib3

TOKEN_VARIABLE = "SLINGSTONE_ARENA_TOKEN"
RETRIED = (429, 500, 502, 503, 504)


class ArenaError(RuntimeError):
    """What the arena said; `status` is its HTTP status, 0 if nobody answered."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class ArenaClient:
    """An arena at a URL.

    Requests that get no answer are sent again: each means the same however often it comes.

    Args:
        url: such as `http://127.0.0.1:8400`.
        token: bearer token; by default the environment's SLINGSTONE_ARENA_TOKEN, if it is set.
        retries: how often a request is sent again, with pauses that grow to 8 s.
    """

    def __init__(self, url: str, token: str | None = None, retries: int = 8) -> None:
        self._url = url.rstrip("/")
        token = os.environ.get(TOKEN_VARIABLE) if token is None else token
        self._headers = {"authorization": f"Bearer {token}"} if token else {}
        self._again = urllib3.Retry(
            retries,
            redirect=0,
            allowed_methods=None,
            status_forcelist=RETRIED,
            backoff_factor=0.1,
            backoff_max=8,
            raise_on_status=False,
        )
        self._pool = urllib3.PoolManager(maxsize=8, timeout=urllib3.Timeout(connect=5, read=150))

    def about(self) -> dict[str, Any]:
        """Return generators, prompts and rewards."""
        return self._json("GET", "arena")

    def draw(self, generator: str, prompt: str, seed: int = 0) -> dict[str, Any]:
        """Have a picture drawn; return its digest as `picture`, and how it was made."""
        return self._json("POST", "draw", generator=generator, prompt=prompt, seed=seed)

    def picture(self, digest: str) -> bytes:
        """Return a picture as PNG."""
        return self._ask("GET", f"pictures/{digest}.png")

    def scores(self, digest: str, prompt: str) -> dict[str, float]:
        """Return what each reward says of a picture."""
        return self._json("POST", "scores", picture=digest, prompt=prompt)

    def pair(self, voter: str, prompt: str | None = None) -> dict[str, Any]:
        """Return a pair to be compared: `token`, `prompt`, digests as `left` and `right`, `votes` of the voter."""
        return self._json("POST", "pairs", voter=voter, prompt=prompt)

    def vote(
        self, token: str, choice: Literal["left", "right", "tie", "both_bad"], seconds: float | None = None
    ) -> dict[str, Any]:
        """Vote on a pair; return its `vote` id and who drew what. When it returns, the vote is on disk."""
        return self._json("POST", "votes", token=token, choice=choice, seconds=seconds)

    def undo(self, token: str) -> dict[str, Any]:
        """Take a vote back; return its pair again."""
        return self._json("POST", "votes/undo", token=token)

    def results(self) -> dict[str, Any]:
        """Return what the votes say."""
        return self._json("GET", "results")

    def export(self, file: Path) -> None:
        """Write all votes and their pictures as Parquet."""
        file.write_bytes(self._ask("GET", "votes.parquet"))

    def _json(self, method: str, path: str, **body: Any) -> dict[str, Any]:
        return json.loads(self._ask(method, path, body or None))

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> bytes:
        """Return the body of a good answer.

        Raises:
            ArenaError: the arena refused, or did not answer however often it was asked.
        """
        content = {} if body is None else {"json": body}
        url, retries = f"{self._url}/api/{path}", self._again
        try:
            while True:
                answer = self._pool.request(method, url, headers=self._headers, retries=retries, **content)
                if answer.status == 200:
                    return answer.data
                reason = _reason(answer.data)
                if answer.status != 404 or reason is not None:
                    raise ArenaError(answer.status, reason or f"answers with HTTP status {answer.status}")
                # Not the arena's own word: a proxy that has just started, and knows no route yet.
                retries = (answer.retries or retries).increment(method, url, answer)
                retries.sleep(answer)
        except urllib3.exceptions.HTTPError as error:
            raise ArenaError(0, f"{self._url} does not answer: {type(error).__name__}") from error


def _reason(data: bytes) -> str | None:
    """Return what the arena says, if it was the arena that spoke."""
    try:
        return json.loads(data)["reason"]
    except (ValueError, KeyError, TypeError):
        return None
