"""Whatever comes in: a typed answer, no stack trace, and the next request right."""

import json
import random

import pytest

from tests.arena.test_door import Studio, opened

PATHS = (
    "arena",
    "draw",
    "pairs",
    "votes",
    "votes/undo",
    "scores",
    "results",
    "pictures/x.png",
    "health",
    "../x",
    "%00",
    "",
)
FIELDS = ("generator", "prompt", "seed", "voter", "token", "choice", "seconds", "picture", "__class__", "")
VALUES = (
    None,
    True,
    -1,
    0,
    2**70,
    1e308,
    "",
    "initial",
    "left",
    "ann",
    "a" * 5000,
    "\ud83d",
    "🐈",
    "\0",
    "'; DROP TABLE votes; --",
    "../../etc/passwd",
    "<script>",
    "{{7*7}}",
    [],
    ["a"],
    {},
    {"a": {"b": []}},
    "0" * 64,
    "%s%n",
)
BODIES = (
    b"",
    b"{",
    b"null",
    b"[]",
    b"\xff\xfe",
    b"{" * 2000,
    b'{"prompt": NaN}',
    b'"' + b"\\u0000" * 100,
    b"1" * 70_000,
)
METHODS = ("GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")
HEADERS = ("content-type", "authorization", "host", "origin", "accept", "x" * 200)


def one(draw: random.Random) -> dict:
    """A request as somebody might send it who means no good, or does not know."""
    fields = {draw.choice(FIELDS): draw.choice(VALUES) for _ in range(draw.randrange(5))}
    body = json.dumps(fields).encode() if draw.random() < 0.8 else draw.choice(BODIES)
    headers = {"content-type": "application/json"}
    if draw.random() < 0.2:
        headers[draw.choice(HEADERS)] = draw.choice(("", "Bearer ", "Bearer x", "text/plain", "[::", "a" * 3000))
    return {"method": draw.choice(METHODS), "url": f"/api/{draw.choice(PATHS)}", "content": body, "headers": headers}


@pytest.mark.parametrize("count", [150, pytest.param(2000, marks=pytest.mark.slow)])
def test_no_request_breaks_the_arena_or_shows_its_inside(tmp_path, count):
    client, draw = opened(tmp_path, Studio(), door={"requests_per_minute": 10**6}), random.Random(0)
    seen = set()
    for _ in range(count):
        asked = one(draw)
        answer = client.request(**asked)
        seen.add(answer.status_code)
        assert answer.status_code < 500, (asked, answer.text)
        assert "Traceback" not in answer.text
        assert "site-packages" not in answer.text
        if answer.status_code >= 400 and answer.content:
            assert set(answer.json()) == {"error", "reason"}, (asked, answer.text)
    assert {200, 401, 404, 405, 413, 422} <= seen
    assert client.post("/api/draw", json={"generator": "initial", "prompt": "a red circle"}).status_code == 200
