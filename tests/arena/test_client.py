"""The arena's client against a server of this test's own."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from slingstone.arena.client import ArenaClient, ArenaError

UNKNOWN_ROUTE = 404, b"Path '/api/arena' not found. Ping http://.../-/routes for available routes."
TYPED = 404, json.dumps({"error": "NotFoundError", "reason": "there is no such picture"}).encode()
GOOD = 200, b'{"name": "test"}'


@pytest.fixture
def server() -> Iterator[tuple[str, list[tuple[int, bytes]]]]:
    """A URL, and what is answered there, request after request; the last repeats."""
    answers: list[tuple[int, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answers.pop(0) if len(answers) > 1 else answers[0]
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}", answers
        listening.shutdown()


def test_a_proxy_that_has_just_started_and_knows_no_route_yet_is_asked_again(server) -> None:
    url, answers = server
    answers += [UNKNOWN_ROUTE, UNKNOWN_ROUTE, GOOD]
    assert ArenaClient(url).about() == {"name": "test"}
    assert len(answers) == 1
    answers[:] = [UNKNOWN_ROUTE]
    with pytest.raises(ArenaError, match="does not answer") as caught:
        ArenaClient(url, retries=1).about()
    assert caught.value.status == 0


def test_what_the_arena_itself_does_not_have_is_said_at_once(server) -> None:
    url, answers = server
    answers += [TYPED, GOOD]
    with pytest.raises(ArenaError, match="there is no such picture") as caught:
        ArenaClient(url).picture("0" * 64)
    assert caught.value.status == 404
    assert len(answers) == 1
