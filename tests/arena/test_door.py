import io
import random
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from slingstone.arena.door import door
from slingstone.arena.errors import Unavailable
from slingstone.arena.gallery import Drawn, Gallery, Identity
from slingstone.arena.store import Store
from slingstone.arena.tokens import PairTokens
from slingstone.config.arena import Arena
from slingstone.preferences.parquet import read_parquet

PROMPTS = ["a red circle", "a blue square", "two “cats” 🐈"]
MODELS = ("initial", "aligned")


class Studio:
    """Draws a colour that depends on generator, prompt and seed, and counts."""

    def __init__(self) -> None:
        self.drawn = 0
        self.fault: Exception | None = None

    async def draw(self, asked) -> Drawn:
        if self.fault:
            raise self.fault
        self.drawn += 1
        levels = random.Random(f"{asked.model}{asked.prompt}{asked.seed}").sample(range(256), 3)
        file = io.BytesIO()
        Image.new("RGB", (8, 8), tuple(levels)).save(file, "PNG")
        return Drawn(file.getvalue(), 0.25, 1)

    async def score(self, png, prompt) -> dict[str, float]:
        return {"pickscore": float(len(png) + len(prompt))}


@pytest.fixture
def studio():
    return Studio()


def opened(tmp_path: Path, studio: Studio, **settings) -> TestClient:
    generators = [{"kind": "pipeline", "name": name, "location": "x/y", "steps": 1, "guidance": 1} for name in MODELS]
    arena = Arena.model_validate({"name": "test", "generators": generators, "prompts": "unused", **settings})
    identities = {name: Identity(f"weights of {name}", 1, "one_step") for name in MODELS}
    store = Store(f"sqlite:///{tmp_path}/votes.db", tmp_path / "pictures")
    gallery = Gallery(arena, PROMPTS, identities, store, PairTokens("secret"), studio.draw, studio.score)
    return TestClient(door(gallery), "http://127.0.0.1:8400", client=("127.0.0.1", 50_000))


@pytest.fixture
def client(tmp_path, studio):
    return opened(tmp_path, studio)


def said(response) -> str:
    assert set(response.json()) == {"error", "reason"}
    return f"{response.status_code} {response.json()['error']} {response.json()['reason']}"


def test_a_picture_is_drawn_once_and_stays_the_same(client, studio):
    asked = {"generator": "initial", "prompt": "a red circle", "seed": 3}
    first, second = (client.post("/api/draw", json=asked).json() for _ in range(2))
    assert first == second
    assert studio.drawn == 1
    assert (first["seconds"], first["network_evaluations"], first["weights"]) == (0.25, 1, "weights of initial")
    picture = client.get(f"/api/pictures/{first['picture']}.png")
    assert picture.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(picture.content)).size == (8, 8)
    other = client.post("/api/draw", json={**asked, "seed": 4}).json()
    assert other["picture"] != first["picture"]


def test_scores_are_of_the_picture_and_its_prompt(client):
    drawn = client.post("/api/draw", json={"generator": "initial", "prompt": "a red circle"}).json()["picture"]
    size = len(client.get(f"/api/pictures/{drawn}.png").content)
    assert client.post("/api/scores", json={"picture": drawn, "prompt": "abc"}).json() == {"pickscore": size + 3}


def test_a_pair_is_anonymous_until_it_is_voted_on(client):
    pair = client.post("/api/pairs", json={"voter": "ann"}).json()
    assert set(pair) == {"token", "prompt", "left", "right", "votes"}
    assert not any(name in str(pair) for name in MODELS)
    taken = client.post("/api/votes", json={"token": pair["token"], "choice": "left", "seconds": 1.5}).json()
    assert {taken["left"]["generator"], taken["right"]["generator"]} == set(MODELS)
    assert taken["votes"] == 1


def test_a_vote_counts_once_and_cannot_be_changed_but_by_undoing_it(client):
    pair = client.post("/api/pairs", json={"voter": "ann"}).json()
    vote = {"token": pair["token"], "choice": "left"}
    assert [client.post("/api/votes", json=vote).json()["votes"] for _ in range(3)] == [1, 1, 1]
    changed = client.post("/api/votes", json={**vote, "choice": "right"})
    assert said(changed).startswith("409 ContradictedError was voted on before")
    again = client.post("/api/votes/undo", json={"token": pair["token"]}).json()
    assert again["votes"] == 0
    assert {again["left"], again["right"]} == {pair["left"], pair["right"]}
    assert client.post("/api/votes", json={"token": again["token"], "choice": "right"}).json()["votes"] == 1
    assert client.get("/api/results").json()["votes"] == 1


def test_the_winner_leads_whichever_side_it_stood_on(client):
    for number in range(30):
        pair = client.post("/api/pairs", json={"voter": f"v{number % 3}"}).json()
        # Of the two, "aligned" draws what its key says; the voter looks for it.
        aligned = client.post("/api/draw", json={"generator": "aligned", "prompt": pair["prompt"], "seed": 0}).json()
        seeds = [
            client.post("/api/draw", json={"generator": "aligned", "prompt": pair["prompt"], "seed": seed}).json()
            for seed in range(4)
        ]
        assert aligned == seeds[0]
        left = pair["left"] in {one["picture"] for one in seeds}
        client.post("/api/votes", json={"token": pair["token"], "choice": "left" if left else "right"})
    found = client.get("/api/results").json()
    assert [(row["name"], row["wins"]) for row in found["generators"]] == [("aligned", 30), ("initial", 0)]
    assert found["generators"][0]["low"] > found["generators"][1]["high"]


def test_votes_are_exported_with_their_pictures(client, tmp_path):
    pair = client.post("/api/pairs", json={"voter": "ann"}).json()
    client.post("/api/votes", json={"token": pair["token"], "choice": "both_bad", "seconds": 2})
    (tmp_path / "out.parquet").write_bytes(client.get("/api/votes.parquet").content)
    (vote,) = read_parquet(tmp_path / "out.parquet")
    assert (vote.choice, vote.voter, vote.prompt, vote.seconds) == ("both_bad", "ann", pair["prompt"], 2)
    assert {vote.first.digest, vote.second.digest} == {pair["left"], pair["right"]}
    assert {vote.first.model, vote.second.model} == set(MODELS)
    assert vote.first.seed == vote.second.seed
    assert vote.shown_left in ("first", "second")


@pytest.mark.parametrize(
    ("path", "body", "answer"),
    [
        (
            "draw",
            {"generator": "mine", "prompt": "x"},
            "422 InvalidRequestError generator: is none of initial, aligned",
        ),
        ("draw", {"generator": "initial", "prompt": " \n"}, "422 InvalidRequestError prompt: is empty"),
        ("draw", {"generator": "initial", "prompt": "x" * 1001}, "422 InvalidRequestError prompt: has 1001 characters"),
        ("draw", {"generator": "initial", "prompt": "x", "seed": -1}, "422 InvalidRequestError seed: "),
        ("draw", {"generator": "initial", "prompt": "x\0"}, "422 InvalidRequestError prompt: is no Unicode"),
        ("draw", {"generator": "initial", "prompt": "x", "steps": 9}, "422 InvalidRequestError steps: "),
        ("pairs", {"voter": "../ann"}, "422 InvalidRequestError voter: "),
        ("votes", {"token": "abc", "choice": "left"}, "422 InvalidRequestError token: is none of this arena's"),
        ("votes", {"token": "abc", "choice": "up"}, "422 InvalidRequestError choice: "),
        ("scores", {"picture": "0" * 64, "prompt": "x"}, "404 NotFoundError"),
        ("scores", {"picture": "../../etc/passwd", "prompt": "x"}, "422 InvalidRequestError picture: "),
        ("votes/undo", {"token": "x"}, "422 InvalidRequestError token: "),
        ("nothing", {}, "405 RefusedError"),
    ],
)
def test_a_bad_request_is_told_its_field_and_nothing_of_what_it_sent(client, path, body, answer):
    response = client.post(f"/api/{path}", json=body)
    assert said(response).startswith(answer)
    assert "passwd" not in response.text


def test_a_request_beyond_its_size_is_refused(client):
    response = client.post("/api/draw", content=b"x" * 70_000, headers={"content-type": "application/json"})
    assert said(response) == "413 RequestTooLargeError is longer than 65536 bytes"


def test_an_error_of_the_inside_shows_nothing_of_it(client, studio):
    studio.fault = RuntimeError("/secret/path is broken")
    response = client.post("/api/draw", json={"generator": "initial", "prompt": "x"})
    assert said(response).startswith("500 ArenaFailedError the arena failed; its log tells why under ")
    assert "secret" not in response.text
    studio.fault = Unavailable("too many requests wait; come again in a moment")
    response = client.post("/api/draw", json={"generator": "initial", "prompt": "x"})
    assert said(response) == "503 UnavailableError too many requests wait; come again in a moment"
    studio.fault = None
    assert client.post("/api/draw", json={"generator": "initial", "prompt": "x"}).status_code == 200


def test_without_the_token_nobody_comes_in_but_from_this_machine(tmp_path, studio, monkeypatch):
    monkeypatch.setenv("SLINGSTONE_ARENA_TOKEN", "open sesame")
    locked = opened(tmp_path, studio, door={"access": "token"})
    assert said(locked.get("/api/arena")).startswith("401 UnauthorisedError wants the header")
    assert locked.get("/api/arena", headers={"authorization": "Bearer open"}).status_code == 401
    assert locked.get("/api/arena", headers={"authorization": "Bearer open sesame"}).json()["name"] == "test"
    assert locked.get("/").status_code == 200  # the page itself, which asks for the token
    local = opened(tmp_path, studio)
    assert local.get("/api/arena").status_code == 200
    far = TestClient(local.app, "http://127.0.0.1:8400", client=("192.0.2.7", 50_000))
    assert far.get("/api/arena").status_code == 401
    # A page of elsewhere in a browser of this machine: by its own name for 127.0.0.1, or across origins.
    assert local.get("/api/arena", headers={"host": "rebound.example:8400"}).status_code == 401
    assert local.post("/api/pairs", json={}, headers={"origin": "https://elsewhere.example"}).status_code == 401


def test_who_asks_too_often_is_told_to_wait(tmp_path, studio):
    client = opened(tmp_path, studio, door={"requests_per_minute": 3})
    assert [client.get("/api/arena").status_code for _ in range(4)] == [200, 200, 200, 429]
    assert int(client.get("/api/arena").headers["retry-after"]) >= 1
    assert client.get("/api/health").status_code == 200


def test_where_typed_prompts_are_off_only_the_arenas_own_are_drawn(tmp_path, studio):
    client = opened(tmp_path, studio, typed_prompts=False)
    assert client.post("/api/draw", json={"generator": "initial", "prompt": PROMPTS[2]}).status_code == 200
    response = client.post("/api/draw", json={"generator": "initial", "prompt": "x"})
    assert said(response).startswith("422 InvalidRequestError prompt: this arena draws its own")
    assert client.post("/api/pairs", json={"voter": "ann", "prompt": "x"}).status_code == 422


def test_a_voter_meets_some_of_his_pairs_again_with_sides_changed(tmp_path, studio):
    client = opened(tmp_path, studio, pairs={"again": 0.5, "seeds": 10**9})
    seen, again = {}, 0
    for _ in range(60):
        pair = client.post("/api/pairs", json={"voter": "ann"}).json()
        key = frozenset((pair["left"], pair["right"]))
        again += key in seen
        assert key not in seen or seen[key] != pair["left"]
        seen[key] = pair["left"]
        client.post("/api/votes", json={"token": pair["token"], "choice": "left"})
    assert 10 < again < 45
    assert client.get("/api/results").json()["agreement"]["with_themselves"]["value"] < 0.5  # always left: never agrees


def test_the_page_needs_nothing_from_elsewhere(client):
    page = client.get("/")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for name in ("main.js", "try.js", "compare.js", "results.js", "api.js", "style.css", "icon.svg"):
        text = client.get(f"/{name}").text
        assert "https://" not in text
        assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
