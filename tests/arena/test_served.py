"""The arena on Ray Serve, drawing with the generators of a tiny world."""

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from slingstone.arena.client import ArenaClient, ArenaError
from slingstone.arena.preparation import prepare
from slingstone.config.arena import Arena

pytestmark = pytest.mark.ray
SCENES = Path(__file__).resolve().parents[2] / "platform" / "slingstone" / "world" / "scenes"
CHOICES = ("left", "right", "tie", "both_bad")


def arena(tmp_path: Path, name: str, **settings) -> Arena:
    """Two generators that differ in their timestep alone."""
    generators = [
        {
            "kind": "generator",
            "name": f"at{timestep}",
            "models": {
                "reference": str(SCENES / "reference"),
                "generator": str(SCENES / "generator"),
                "generator_timestep": timestep,
            },
        }
        for timestep in (625, 500)
    ]
    tree = {"name": name, "storage": str(tmp_path), "generators": generators, "drawers": {"num_cpus": 0}}
    tree |= {"prompts": str(SCENES / "prompts" / "heldout.txt"), "door": {"requests_per_minute": 100_000}}
    return prepare(Arena.model_validate(tree | settings))


@pytest.fixture(scope="module")
def served(cluster, proxy, tmp_path_factory):
    from ray import serve

    from slingstone.arena.deployment import build

    # The two share one process, which keeps one of them in memory: the least that can draw both.
    settings = arena(tmp_path_factory.mktemp("arena"), "test", drawers={"num_cpus": 0, "resident": 1})
    serve.run(build(settings), name="arena-test", route_prefix="/arena")
    yield ArenaClient(f"{proxy}/arena"), settings
    serve.delete("arena-test")


def test_generators_draw_what_a_run_would_evaluate_whatever_shares_their_pass(served):
    import io

    import numpy as np
    import torch
    from PIL import Image

    from slingstone.compare.evaluator import load_sampler
    from slingstone.evaluation.grids import to_picture

    client, settings = served
    prompts = client.about()["prompts"][:3]
    asked = [(entry.name, prompt) for entry in settings.generators for prompt in prompts]
    with ThreadPoolExecutor(6) as threads:
        drawn = list(threads.map(lambda one: client.draw(*one, seed=7), asked))
    for (name, prompt), one in zip(asked, drawn, strict=True):
        entry = next(entry for entry in settings.generators if entry.name == name)
        wanted = to_picture(load_sampler(entry, torch.device("cpu"))([prompt], [7]).images[0])
        found = Image.open(io.BytesIO(client.picture(one["picture"])))
        difference = np.asarray(wanted).astype(int) - np.asarray(found)
        assert abs(difference).max() <= 1  # a larger batch rounds otherwise, by less than a step of the 8-bit grid
    assert len({one["picture"] for one in drawn}) == len(drawn)


def test_the_page_is_served_beside_the_api(served):
    import urllib.request

    client, _ = served
    with urllib.request.urlopen(f"{client._url}/") as page:
        assert b"<title>Arena</title>" in page.read()
    with urllib.request.urlopen(f"{client._url}/main.js") as script:
        assert script.headers["content-type"].startswith("text/javascript")


def test_what_the_arena_refuses_reaches_a_program_with_its_reason(served):
    client, _ = served
    with pytest.raises(ArenaError, match="is none of at625, at500") as caught:
        client.draw("mine", "x")
    assert caught.value.status == 422


@pytest.mark.slow
def test_a_new_version_rolls_out_without_a_failed_request(cluster, proxy, tmp_path):
    from ray import serve

    from slingstone.arena.deployment import build

    first = arena(tmp_path, "rolled")
    serve.run(build(first), name="arena-rolled", route_prefix="/rolled")
    client, stop, failed, answered = ArenaClient(f"{proxy}/rolled", retries=0), threading.Event(), [], 0

    def ask(number: int) -> None:
        nonlocal answered
        draw = random.Random(number)
        while not stop.is_set():
            try:
                client.draw("at625", f"a {draw.random()} circle", draw.randrange(1000))
                answered += 1
            except ArenaError as error:
                failed.append(error)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(3)
        before = answered
        second = first.model_copy(update={"generators": first.generators[:1]})
        serve.run(build(second), name="arena-rolled", route_prefix="/rolled")
        assert [one["name"] for one in client.about()["generators"]] == ["at625"]
        time.sleep(3)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        serve.delete("arena-rolled")
    assert failed == []
    assert answered > before > 0
