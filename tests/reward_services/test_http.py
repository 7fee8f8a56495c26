"""The HTTP way in: the ingress without Serve, the client against a scripted server, and both through a real proxy."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import urllib3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ray import serve
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from torch import Tensor

from reward_services import wire
from reward_services.client import InProcessClient
from reward_services.deployment import build
from reward_services.http_client import HttpClient
from reward_services.ingress import HttpIngress
from reward_services.models import load
from reward_services.prepared import PreparingClient
from reward_services.preprocess import Preprocess
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
from reward_services.spec import HttpSpec, RewardSpec
from tests.reward_services.replicas import pids
from tests.reward_services.test_wire import BAD, BODIES

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "a secret of the tests"
PROMPTS = ["a red circle", "it's a blue square on green", "green"]


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 31, 44, generator=torch.Generator().manual_seed(0))


async def _twice(asked: wire.Request) -> tuple[np.ndarray, ...]:
    return np.arange(len(asked.images), dtype=np.float32), *[asked.images * 2] * asked.gradient


def _ask(ingress: HttpIngress, method: str, body: bytes = b"", peer: str = "10.1.2.3", **headers: str) -> Response:
    """Call the ingress as Serve's replica does."""
    named = {"content-type": wire.MEDIA_TYPE, "content-length": str(len(body))} | headers
    scope = {
        "type": "http",
        "method": method,
        "path": "/reward-hps",
        "query_string": b"",
        "client": (peer, 1234),
        "headers": [(name.encode(), value.encode()) for name, value in named.items()],
    }
    parts = [body[at : at + 100] for at in range(0, len(body), 100)] or [b""]

    async def receive() -> dict:
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    return asyncio.run(ingress.answer(HttpRequest(scope, receive)))


def _ingress(settings: HttpSpec, judge: Callable = _twice) -> tuple[HttpIngress, list[RewardError]]:
    failed: list[RewardError] = []
    return HttpIngress("hps", settings, judge, {"rule": None}, failed.append), failed


BODY = wire.encode_request(wire.Request(np.full((2, 3, 2, 2), 0.5, np.float32), ["red", "green"]))


@pytest.mark.parametrize(
    ("access", "token", "peer", "authorization", "status"),
    [
        ("token", TOKEN, "10.1.2.3", f"Bearer {TOKEN}", 200),
        ("token", TOKEN, "10.1.2.3", f"bearer  {TOKEN} ", 200),
        ("token", TOKEN, "127.0.0.1", "", 401),
        ("token", TOKEN, "10.1.2.3", "Bearer another", 401),
        ("token", TOKEN, "10.1.2.3", f"Basic {TOKEN}", 401),
        ("token", TOKEN, "10.1.2.3", "Bearer", 401),
        ("token", "", "127.0.0.1", "", 401),
        ("token", "", "127.0.0.1", "Bearer ", 401),
        ("loopback", "", "127.0.0.1", "", 200),
        ("loopback", "", "::1", "", 200),
        ("loopback", "", "10.1.2.3", "", 401),
        ("loopback", "", "10.1.2.3", "Bearer ", 401),
        ("loopback", TOKEN, "10.1.2.3", f"Bearer {TOKEN}", 200),
        ("loopback", TOKEN, "somewhere", "", 401),
    ],
)
def test_only_who_has_the_token_is_answered_unless_loopback_was_meant(
    monkeypatch, access: str, token: str, peer: str, authorization: str, status: int
):
    monkeypatch.setenv(wire.TOKEN_VARIABLE, token)
    ingress, failed = _ingress(HttpSpec(access=access))
    for method in ("POST", "GET"):
        response = _ask(ingress, method, BODY, peer, authorization=authorization)
        assert response.status_code == status
        if status == 401:
            assert isinstance(wire.decode_error(bytes(response.body)), UnauthorisedError)
            assert response.headers["www-authenticate"] == "Bearer"
    assert len(failed) == (2 if status == 401 else 0)


LOOPBACK = HttpSpec(access="loopback", max_body_mib=len(BODY) / 2**20)


def test_a_good_request_is_answered_with_what_the_service_says():
    ingress, _ = _ingress(LOOPBACK)
    response = _ask(ingress, "POST", BODY, "127.0.0.1")
    scores, gradient = wire.decode_answer("hps", bytes(response.body))
    assert scores.tolist() == [0.0, 1.0]
    np.testing.assert_array_equal(gradient, np.ones((2, 3, 2, 2)))


def test_who_wants_scores_alone_gets_a_short_answer():
    ingress, _ = _ingress(LOOPBACK)
    asked = wire.Request(np.full((2, 3, 2, 2), 0.5, np.float32), ["red", "green"], gradient=False)
    ingress = replace(ingress, settings=HttpSpec(access="loopback"))
    response = _ask(ingress, "POST", wire.encode_request(asked), "127.0.0.1")
    (scores,) = wire.decode_answer("hps", bytes(response.body))
    assert scores.tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("method", "headers", "body", "kind"),
    [
        ("DELETE", {}, BODY, MalformedRequestError),
        ("POST", {"content-type": "application/json"}, BODY, MalformedRequestError),
        ("POST", {}, BODY + b"\0", RequestTooLargeError),
        # who lies about the length, or does not know it, is stopped when it is reached
        ("POST", {"content-length": "7"}, BODY + b"\0" * 10, RequestTooLargeError),
        ("POST", {"content-length": "many"}, BODY + b"\0" * 10, RequestTooLargeError),
        ("POST", {}, BODY[:-4], MalformedRequestError),
    ],
)
def test_what_is_no_request_is_refused_in_words_and_counted(method: str, headers: dict, body: bytes, kind: type):
    ingress, failed = _ingress(LOOPBACK)
    response = _ask(ingress, method, body, "127.0.0.1", **headers)
    said = wire.decode_error(bytes(response.body))
    assert type(said) is kind
    assert [type(error) for error in failed] == [kind]
    assert response.status_code == wire.encode_error(said)[0]


def test_a_body_that_declares_too_much_is_refused_before_it_is_read():
    ingress, _ = _ingress(LOOPBACK)
    response = _ask(ingress, "POST", b"", "127.0.0.1", **{"content-length": str(2**40)})
    assert response.status_code == 413


def test_an_error_of_the_service_is_passed_on():
    async def broken(asked: wire.Request) -> tuple[np.ndarray, np.ndarray]:
        raise RewardFailedError("hps", "ArithmeticError: no judgement")

    response = _ask(_ingress(LOOPBACK, broken)[0], "POST", BODY, "127.0.0.1")
    assert response.status_code == 500
    assert str(wire.decode_error(bytes(response.body))) == "reward 'hps': ArithmeticError: no judgement"


@dataclass
class Script:
    """What a server answers, request after request; the last repeats. None closes the connection without a word."""

    answers: list[tuple[int, bytes] | None] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    delay_s: float = 0.0


@pytest.fixture
def server() -> Iterator[tuple[str, Script]]:
    script = Script()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            answer = script.answers[min(len(script.headers), len(script.answers) - 1)]
            script.headers.append(dict(self.headers))
            time.sleep(script.delay_s)
            if answer is None:
                self.close_connection = True
                return
            self.send_response(answer[0])
            self.send_header("content-length", str(len(answer[1])))
            self.send_header("location", "http://127.0.0.1:1/elsewhere")
            self.end_headers()
            self.wfile.write(answer[1])

        def log_message(self, format: str, *args: object) -> None:
            pass

    served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{served.server_port}", script
    served.shutdown()
    served.server_close()


def _good(images: Tensor) -> tuple[int, bytes]:
    return 200, wire.encode_answer(np.arange(len(images), dtype=np.float32), images.numpy() * 2)


def test_scores_alone_are_asked_for_over_http(server, images: Tensor):
    url, script = server
    script.answers = [(200, wire.encode_answer(np.arange(3, dtype=np.float32))), _good(images)]
    assert HttpClient(url, "hps", 10.0).submit_for_scores(images, PROMPTS).result().tolist() == [0.0, 1.0, 2.0]
    with pytest.raises(RewardFailedError, match="has the shapes"):
        HttpClient(url, "hps", 10.0).submit_for_scores(images, PROMPTS).result()


@pytest.mark.parametrize("trouble", [None, (503, b"dropped"), (500, b"Internal Server Error"), (408, b"timeout")])
def test_a_request_that_nobody_answered_is_sent_again(server, images: Tensor, trouble):
    url, script = server
    script.answers = [trouble, trouble, _good(images)]
    scores, gradient = HttpClient(url, "hps", 10.0, TOKEN).submit(images, PROMPTS).result()
    assert scores.tolist() == [0.0, 1.0, 2.0]
    assert torch.equal(gradient, images * 2)
    gradient.zero_()
    assert [headers["authorization"] for headers in script.headers] == [f"Bearer {TOKEN}"] * 3


def test_a_queue_that_is_full_until_the_deadline_is_an_error_of_its_own(server, images: Tensor):
    url, script = server
    script.answers = [(503, b"Request dropped due to backpressure (num_queued_requests=1, max_queued_requests=1).")]
    with pytest.raises(RewardOverloadedError, match="HTTP status 503: the queue is full"):
        HttpClient(url, "hps", 1.5).submit(images, PROMPTS).result()
    assert len(script.headers) > 1


@pytest.mark.parametrize("kind", [InvalidRequestError, UnauthorisedError, RewardFailedError])
def test_what_the_service_says_is_raised_at_once(server, images: Tensor, kind: type[RewardError]):
    url, script = server
    script.answers = [wire.encode_error(kind("hps", "no"))]
    with pytest.raises(kind, match="reward 'hps': no"):
        HttpClient(url, "hps", 10.0).submit(images, PROMPTS).result()
    assert len(script.headers) == 1


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        ((307, b""), RewardFailedError, "HTTP status 307"),
        ((200, b"<html>"), RewardFailedError, "the answer cannot be read"),
        (
            (200, wire.encode_answer(np.zeros(2, np.float32), np.zeros((2, 3, 31, 44), np.float32))),
            RewardFailedError,
            r"the answer to pictures of shape \(3, 3, 31, 44\) has the shapes",
        ),
    ],
)
def test_a_server_of_something_else_is_an_error_at_once(server, images: Tensor, answer, kind, words: str):
    url, script = server
    script.answers = [answer]
    with pytest.raises(kind, match=words):
        HttpClient(url, "hps", 10.0).submit(images, PROMPTS).result()
    assert len(script.headers) == 1


def test_a_proxy_that_has_just_started_and_knows_no_route_yet_is_asked_again(server, images: Tensor):
    url, script = server
    script.answers = [(404, b"Path '/reward-hps' not found."), _good(images)]
    assert torch.equal(HttpClient(url, "hps", 10.0).submit(images, PROMPTS).result()[1], images * 2)
    assert len(script.headers) == 2
    script.answers = [(404, b"Path '/reward-hps' not found.")]
    with pytest.raises(RewardUnavailableError, match="nothing is served at http://"):
        HttpClient(url, "hps", 0.4).submit(images, PROMPTS).result()


def test_a_service_that_is_silent_or_absent_is_an_error_at_the_deadline(server, images: Tensor):
    url, script = server
    script.answers, script.delay_s = [_good(images)], 1.0
    start = time.monotonic()
    with pytest.raises(RewardUnavailableError, match=r"reward 'hps': no answer within 0\.3 s after 1 attempts"):
        HttpClient(url, "hps", 0.3).submit(images, PROMPTS).result()
    assert time.monotonic() - start < 0.9
    with pytest.raises(RewardUnavailableError, match=r"after [2-9] attempts \(the last one ended with NewConnection"):
        HttpClient("http://127.0.0.1:1", "hps", 0.4).submit(images, PROMPTS).result()


def test_requests_are_under_way_while_the_caller_works(server, images: Tensor):
    url, script = server
    script.answers, script.delay_s = [_good(images)], 0.4
    client = HttpClient(url, "hps", 10.0)
    start = time.monotonic()
    for pending in [client.submit(images, PROMPTS) for _ in range(4)]:
        pending.result()
    assert time.monotonic() - start < 1.2


Spec = Callable[..., RewardSpec]


@pytest.fixture(scope="module")
def served(cluster: None, proxy: str, spec: Spec) -> Iterator[tuple[str, RewardSpec]]:
    """The tiny HPS behind Serve's own proxy, with a token in its environment."""
    one = spec("hps", name="http", num_cpus=0.0, http={"max_body_mib": 0.05, "max_images": 3, "max_side": 48})
    application = build(one)
    deployment = application._bound_deployment
    options = {**(deployment.ray_actor_options or {}), "runtime_env": {"env_vars": {wire.TOKEN_VARIABLE: TOKEN}}}
    bound = deployment.options(ray_actor_options=options).bind(one.model_dump())
    serve.run(bound, name=one.app_name, route_prefix=f"/{one.app_name}")
    yield proxy, one
    serve.delete(one.app_name)


@pytest.mark.ray
def test_over_http_scores_and_gradients_are_those_of_this_process_bit_for_bit(served, spec: Spec, images: Tensor):
    url, one = served
    expected, expected_gradient = InProcessClient(load(spec("hps"))).submit(images, PROMPTS).result()
    client = HttpClient(url, one.name, token=TOKEN)
    scores, gradient = client.submit(images, PROMPTS).result()
    assert torch.equal(scores, expected)
    assert torch.equal(gradient, expected_gradient)
    assert torch.equal(client.submit_for_scores(images, PROMPTS).result(), expected)

    rule = Preprocess(**client.describe()["rule"])
    prepared = PreparingClient(HttpClient(url, one.name, token=TOKEN, prepared=True), rule)
    scores, gradient = prepared.submit(images, PROMPTS).result()
    assert torch.equal(scores, expected)
    assert torch.equal(gradient, expected_gradient)
    assert torch.equal(prepared.submit_for_scores(images, PROMPTS).result(), expected)


@pytest.mark.ray
def test_the_trainer_outside_the_cluster_of_the_readme_climbs_the_reward(served, monkeypatch):
    url, one = served
    monkeypatch.setenv(wire.TOKEN_VARIABLE, TOKEN)
    example = (ROOT / "reward_services" / "README.md").read_text().split("```python\n")[2].split("```")[0]
    here = (
        example.replace("http://127.0.0.1:8000", url)
        .replace('"pickscore"', f'"{one.name}"')
        .replace("64, 64", "48, 48")
    )
    names: dict[str, Any] = {}
    exec(compile(here, "README.md", "exec"), names)
    assert names["scores"][-1] > names["scores"][0]
    assert names["scores"] == sorted(names["scores"])


@pytest.mark.ray
def test_a_replica_survives_every_bad_body_and_every_stranger(served, images: Tensor):
    url, one = served
    before = pids(one.name)
    headers = {"content-type": wire.MEDIA_TYPE, "authorization": f"Bearer {TOKEN}"}
    address = f"{url}/{one.app_name}"
    for case, (body, kind, _) in BAD.items():
        if case == "pictures too large":  # for other limits than these
            continue
        response = urllib3.request("POST", address, body=body, headers=headers, retries=False)
        assert type(wire.decode_error(response.data)) is kind, case
    for token in ("", "another"):
        with pytest.raises(UnauthorisedError, match="wants the header"):
            HttpClient(url, one.name, token=token).submit(images, PROMPTS).result()
    with pytest.raises(RewardUnavailableError, match="nothing is served"):
        HttpClient(url, "absent", token=TOKEN).describe()
    HttpClient(url, one.name, token=TOKEN).submit(images, PROMPTS).result()
    assert pids(one.name) == before
    assert len(before) == 1


_TYPED = (InvalidRequestError, MalformedRequestError, RequestTooLargeError, UnauthorisedError)


@pytest.mark.ray
def test_a_replica_survives_hundreds_of_requests_that_nobody_would_write(served, images: Tensor):
    url, one = served
    before = pids(one.name)
    pool = urllib3.PoolManager(retries=False)
    names = st.sampled_from(["content-type", "authorization", "content-encoding", "accept", "expect-nothing"])
    values = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20)
    good = {"content-type": wire.MEDIA_TYPE, "authorization": f"Bearer {TOKEN}"}
    statuses = Counter()

    @settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(BODIES, st.just({}) | st.dictionaries(names, values, max_size=2))
    def ask(body: bytes, headers: dict[str, str]) -> None:
        response = pool.request("POST", f"{url}/{one.app_name}", body=body, headers=good | headers)
        statuses[response.status] += 1
        if response.status != 200:
            assert type(wire.decode_error(response.data)) in _TYPED, (response.status, response.data)

    ask()
    assert sum(statuses.values()) >= 300
    assert {400, 401} <= set(statuses)
    HttpClient(url, one.name, token=TOKEN).submit(images, PROMPTS).result()
    assert pids(one.name) == before
