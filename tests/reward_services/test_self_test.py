"""No reward is asked anything before it has shown that it can be trusted, wherever it is computed."""

import asyncio
from collections.abc import Callable

import numpy as np
import pytest
import torch

from reward_services import self_test
from reward_services.client import InProcessClient
from reward_services.deployment import RewardService
from reward_services.models import load
from reward_services.protocol import RewardFailedError
from reward_services.spec import RewardSpec
from slingstone.config import Rewards
from slingstone.worker.rewards import clients
from tests.reward_services.untrustworthy import SHAPES

SAID = dict.fromkeys(SHAPES, "has the shapes") | {
    "rounded": "the gradient of test picture 0 is zero everywhere",
    "cut off": "the gradient of test picture 0 is zero everywhere",
    "relative to its batch": "the gradient of test picture 0 is zero everywhere",
    "relative to its batch behind a detach": "beside another, .* beside itself",
    "relative to the first": "beside another, .* beside itself",
    "of all prompts": "beside another, .* beside itself",
    "not finite": "or their gradient is not finite",
}


def _spec(way: str) -> RewardSpec:
    return RewardSpec(name="mine", model="tests.reward_services.untrustworthy:Untrustworthy", checkpoint=way)


@pytest.mark.parametrize("way", SAID)
def test_a_reward_that_cannot_be_trusted_is_neither_served_nor_loaded_into_a_worker(way: str):
    with pytest.raises(RewardFailedError, match=f"reward 'mine': .*{SAID[way]}"):
        RewardService(_spec(way).model_dump())
    local = Rewards.model_validate({"backend": "in_process", "services": [_spec(way).model_dump()]})
    with pytest.raises(RewardFailedError, match=f"reward 'mine': .*{SAID[way]}"):
        clients(local, torch.device("cpu"))


@pytest.mark.parametrize("way", ["without gradient", "by numpy"])
def test_a_reward_without_gradient_is_served_to_be_held_out_and_not_trained_on(way: str):
    service = RewardService(_spec(way).model_dump())
    described = asyncio.run(service.describe())
    assert described["differentiable"] is False
    (scores,) = asyncio.run(service.score(np.random.rand(2, 3, 8, 8).astype(np.float32), ["a", "b"]))
    assert scores.shape == (2,)
    asyncio.run(service.check_health())
    for weight in (0, 1):
        services = [_spec(way).model_dump() | {"weight": weight}]
        local = Rewards.model_validate({"backend": "in_process", "services": services})
        if weight:
            with pytest.raises(ValueError, match=r"services.mine.weight = 1: its scores have no gradient .*weight=0"):
                clients(local, torch.device("cpu"))
        else:
            clients(local, torch.device("cpu"))


@pytest.mark.parametrize("way", SHAPES)
def test_a_worker_is_told_of_an_answer_of_another_shape_by_the_rewards_name(way: str):
    client = InProcessClient(load(_spec(way)), "mine")
    with pytest.raises(RewardFailedError, match=r"reward 'mine': the answer to pictures of shape \(3, 3, 8, 8\) has"):
        client.submit(torch.rand(3, 3, 8, 8), ["a", "bb", "ccc"]).result()


def test_a_score_that_a_run_knows_is_judged_in_its_workers_too(spec: Callable[..., RewardSpec]):
    one = spec("hps")
    score = self_test.start(one, load(one))
    for known, refused in ((score, False), (score + 0.01, True)):
        local = Rewards.model_validate(
            {"backend": "in_process", "services": [one.model_dump() | {"self_test_score": known}]}
        )
        if refused:
            with pytest.raises(RewardFailedError, match=r"the test picture scores .*, expected"):
                clients(local, torch.device("cpu"))
        else:
            clients(local, torch.device("cpu"))


def test_the_test_pictures_differ_and_cover_the_whole_range():
    first, second = self_test.pictures()
    for picture in (first, second):
        assert (float(picture.min()), float(picture.max())) == pytest.approx((0, 1), abs=1e-3)
    assert float((first - second).abs().mean()) > 0.2
    down, across = np.mgrid[0:64, 0:64] / 63  # scores that a configuration knows are of this picture
    expected = np.stack([down, across, 0.5 + 0.5 * np.sin(40 * down * across)])
    np.testing.assert_allclose(first.numpy(), expected, atol=1e-6)
