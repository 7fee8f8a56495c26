"""A replica's own behaviour, without Serve around it."""

import asyncio
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from reward_services.deployment import RewardService
from reward_services.gradient import score_and_gradient
from reward_services.models import load
from reward_services.models.checkpoints import read_state_dict
from reward_services.models.hps import PUBLISHED_FILE
from reward_services.protocol import InvalidRequestError, RewardFailedError
from reward_services.spec import RewardSpec

Spec = Callable[..., RewardSpec]
PROMPTS = ["a red circle", "green"]


@pytest.fixture
def images() -> np.ndarray:
    pixels = np.random.default_rng(0).random((2, 3, 31, 44), dtype=np.float32)
    pixels.flags.writeable = False  # as everything that comes out of the object store
    return pixels


def test_a_replica_answers_with_scores_and_gradients_in_float32(spec: Spec, images: np.ndarray):
    service = RewardService(spec("pickscore", dtype="bfloat16").model_dump())
    scores, gradient = asyncio.run(service.score_and_gradient(images, PROMPTS))
    assert scores.dtype == gradient.dtype == np.float32
    model = load(spec("pickscore", dtype="bfloat16"))
    expected, expected_gradient = score_and_gradient(model, torch.tensor(images), PROMPTS)
    np.testing.assert_array_equal(scores, expected.numpy())
    np.testing.assert_array_equal(gradient, expected_gradient.numpy())


def test_a_replica_checks_requests_and_stays_healthy(spec: Spec, images: np.ndarray):
    service = RewardService(spec("pickscore").model_dump())

    async def scenario() -> None:
        with pytest.raises(InvalidRequestError, match="reward 'pickscore': 1 prompts for 2 pictures"):
            await service.score_and_gradient(images, PROMPTS[:1])
        # A lone surrogate is a Python string that no tokenizer can encode.
        with pytest.raises(RewardFailedError, match="reward 'pickscore': "):
            await service.score_and_gradient(images, ["\ud800", "red"])
        await service.check_health()
        await service.score_and_gradient(images, PROMPTS)
        assert (await service.describe())["name"] == "pickscore"

    asyncio.run(scenario())


def test_a_model_that_gives_no_numbers_is_not_served(spec: Spec, rewards_root: Path, tmp_path: Path):
    directory = Path(shutil.copytree(rewards_root / "hps", tmp_path / "hps"))
    state = read_state_dict(directory / PUBLISHED_FILE)
    state["visual.proj"].fill_(torch.nan)
    torch.save({"state_dict": state}, directory / PUBLISHED_FILE)
    with pytest.raises(RewardFailedError, match=r"reward 'hps': checkpoint '.*' gives \[nan\]"):
        RewardService(spec("hps", checkpoint=str(directory)).model_dump())


def test_simulated_latency_delays_answers_and_not_the_start(spec: Spec, images: np.ndarray):
    latency_s = 1.0
    start = time.monotonic()
    service = RewardService(spec("hps", simulated_latency_s=latency_s).model_dump())
    started = time.monotonic()
    asyncio.run(service.score_and_gradient(images, PROMPTS))
    assert time.monotonic() - started >= latency_s
    assert started - start < latency_s
