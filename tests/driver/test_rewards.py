"""How a worker asks the rewards that its configuration names."""

import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import ray
import torch
from ray import serve

from reward_services.deployment import RewardService
from reward_services.protocol import InvalidRequestError, RewardFailedError, RewardUnavailableError
from slingstone.config import Placement, Rewards, load
from slingstone.driver import lease
from slingstone.driver.rewards import check, remove_abandoned, running
from slingstone.step.panel import RunningScale, Scale, Tolerance
from slingstone.worker.rewards import clients, panel
from tests.reward_services.replicas import wait_until

SCENES = Path(__file__).resolve().parents[2] / "configs" / "align" / "scenes.yaml"


class Silent:
    name = "silent"

    def submit(self, images: torch.Tensor, prompts: list[str]):
        raise AssertionError("nobody is asked")

    submit_for_scores = submit


ASKED = {name: Silent() for name in ("pickscore", "hps", "imagereward")}


def test_rewards_that_are_not_reached_over_http_are_all_named_before_a_run_starts():
    over_http = ["rewards.backend=http", "rewards.lifecycle=external", "rewards.url=http://127.0.0.1:1"]
    run = load(SCENES, over_http)
    with (
        pytest.raises(ValueError, match=r"rewards.url = 'http://127.0.0.1:1': reward 'pickscore': .*'imagereward'"),
        running(run.rewards, run.placement, Path("anywhere")),
    ):
        pass


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_rewards_that_find_no_room_end_the_start_in_a_sentence_that_names_who_waits_for_what(tmp_path: Path):
    run = load(SCENES, ["rewards.start_timeout_s=2", "rewards.services.hps.num_cpus=100"])
    only = run.rewards.model_copy(update={"services": tuple(one for one in run.rewards.services if one.name == "hps")})
    with (
        pytest.raises(ValueError, match=r"start_timeout_s = 2: hps has 0 of 1 replicas, of 100 CPUs .*free now: \d"),
        running(only, run.placement, tmp_path / "crowded"),
    ):
        pass


class Describing(BaseHTTPRequestHandler):
    described: ClassVar[dict[str, Any]]

    def do_GET(self) -> None:
        body = json.dumps(self.described).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_another_reward_that_is_served_over_http_is_refused_before_a_run_starts(rewards_root: Path):
    one = {"name": "mine", "model": "hps", "checkpoint": str(rewards_root / "hps")}
    Describing.described = asyncio.run(RewardService(one).describe())
    server = ThreadingHTTPServer(("127.0.0.1", 0), Describing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        asked = Rewards.model_validate(
            {"backend": "http", "lifecycle": "external", "url": url, "services": [one | {"preprocess": "smooth"}]}
        )
        with pytest.raises(ValueError, match="other rewards are served: mine: preprocess is 'exact' there"):
            check(asked)
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.slow
@pytest.mark.ray
def test_two_runs_on_a_cluster_keep_their_own_rewards_of_the_same_name(
    cluster: None, rewards_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    images, prompts = torch.rand(2, 3, 31, 44), ["a red circle", "green"]

    def rewards(kind: str) -> Rewards:
        mine = {"name": "mine", "model": kind, "checkpoint": str(rewards_root / kind), "num_cpus": 0}
        return Rewards.model_validate({"services": [mine]})

    def scores(served: Rewards) -> torch.Tensor:
        return clients(served, torch.device("cpu"))["mine"].submit_for_scores(images, prompts).result()

    expected = {
        kind: scores(rewards(kind).model_copy(update={"backend": "in_process"})) for kind in ("hps", "clip_score")
    }
    monkeypatch.setattr("slingstone.driver.lease.PATIENCE_S", 0.5)
    with running(rewards("hps"), Placement(), tmp_path / "first") as first:
        assert torch.equal(scores(first), expected["hps"])
        with running(rewards("clip_score"), Placement(), tmp_path / "second") as second:
            assert torch.equal(scores(second), expected["clip_score"])
            assert torch.equal(scores(first), expected["hps"])
            (name,) = (entry.served_as for entry in second.services)
            remove_abandoned("third", set())
            assert name in serve.status().applications
            ray.kill(ray.get_actor(name.partition(".")[2], lease.NAMESPACE))  # as if its driver had been killed
            remove_abandoned("third", set())
            wait_until(lambda: name not in serve.status().applications, 20)
        assert torch.equal(scores(first), expected["hps"])
        check(first)
        smooth = first.services[0].model_copy(update={"preprocess": "smooth"})
        with pytest.raises(ValueError, match="other rewards are served: mine: preprocess is 'exact' there"):
            check(first.model_copy(update={"services": (smooth,)}))
        with (
            pytest.raises(ValueError, match="another process manages those of first-"),
            running(rewards("hps"), Placement(), tmp_path / "first"),
        ):
            pass
        assert torch.equal(scores(first), expected["hps"])


def test_weights_and_scales_are_those_of_the_configuration_and_held_out_rewards_are_left_out():
    services = "rewards.services"
    overrides = [
        *(f"{services}.pickscore.weight=2", f"{services}.pickscore.normalisation={{kind: fixed, mean: 21, std: 1.5}}"),
        *(f"{services}.hps.normalisation={{kind: running, half_life_images: 50}}", f"{services}.imagereward.weight=0"),
    ]
    terms = panel(load(SCENES, overrides), ASKED).terms
    assert [(term.name, term.weight, term.scale) for term in terms] == [
        ("pickscore", 2.0, Scale(21.0, 1.5)),
        ("hps", 20.0, RunningScale(50.0)),
    ]
    assert panel(load(SCENES, ["objective.reward_weight=0"]), ASKED).terms == []


def test_outages_are_tolerated_only_if_the_configuration_says_so_and_refusals_never():
    assert panel(load(SCENES), ASKED).tolerance == Tolerance(errors=(), in_a_row=10)
    dropping = panel(load(SCENES, ["rewards.on_failure=drop", "rewards.drops_in_a_row=3"]), ASKED).tolerance
    assert dropping.in_a_row == 3
    for error in (RewardUnavailableError, RewardFailedError):
        assert issubclass(error, dropping.errors)
    assert not issubclass(InvalidRequestError, dropping.errors)
