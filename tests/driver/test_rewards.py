"""How a worker asks the rewards that its configuration names."""

from pathlib import Path

import pytest
import torch

from reward_services.protocol import InvalidRequestError, RewardFailedError, RewardUnavailableError
from slingstone.config import load
from slingstone.driver.rewards import running
from slingstone.step.panel import RunningScale, Scale, Tolerance
from slingstone.worker.rewards import panel

SCENES = Path(__file__).resolve().parents[2] / "configs" / "align" / "scenes.yaml"


class Silent:
    def submit(self, images: torch.Tensor, prompts: list[str]):
        raise AssertionError("nobody is asked")


ASKED = {name: Silent() for name in ("pickscore", "hps", "imagereward")}


def test_rewards_that_are_not_reached_over_http_are_all_named_before_a_run_starts():
    over_http = ["rewards.backend=http", "rewards.lifecycle=external", "rewards.url=http://127.0.0.1:1"]
    run = load(SCENES, over_http)
    with (
        pytest.raises(ValueError, match=r"rewards.url = 'http://127.0.0.1:1': reward 'pickscore': .*'imagereward'"),
        running(run.rewards, run.placement),
    ):
        pass


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_rewards_that_find_no_room_end_the_start_in_a_sentence_that_names_who_waits_for_what():
    run = load(SCENES, ["rewards.start_timeout_s=2", "rewards.services.hps.num_cpus=100"])
    only = run.rewards.model_copy(update={"services": tuple(one for one in run.rewards.services if one.name == "hps")})
    with (
        pytest.raises(ValueError, match=r"start_timeout_s = 2: hps has 0 of 1 replicas, of 100 CPUs .*free now: \d"),
        running(only, run.placement),
    ):
        pass


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
