"""A replica's own behaviour, without Serve around it."""

import asyncio
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from reward_services.deployment import RewardService, build
from reward_services.gradient import score_and_gradient
from reward_services.models import load
from reward_services.models.checkpoints import read_state_dict
from reward_services.models.hps import PUBLISHED_FILE
from reward_services.preprocess import Preprocess
from reward_services.protocol import InvalidRequestError, RewardFailedError
from reward_services.spec import RewardSpec
from workbench.late_reward import late

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


@pytest.mark.parametrize("kind", ["pickscore", "hps", "imagereward", "clip_score", "aesthetic"])
def test_scores_alone_are_those_of_training_bit_for_bit_and_no_gradient_is_computed(
    spec: Spec, images: np.ndarray, kind: str, monkeypatch: pytest.MonkeyPatch
):
    service = RewardService(spec(kind).model_dump())
    expected, _ = asyncio.run(service.score_and_gradient(images, PROMPTS))
    monkeypatch.delattr("torch.autograd.grad")
    (scores,) = asyncio.run(service.score(images, PROMPTS))
    np.testing.assert_array_equal(scores, expected)


def test_a_replica_checks_requests_and_stays_healthy(spec: Spec, images: np.ndarray):
    service = RewardService(spec("pickscore").model_dump())

    async def scenario() -> None:
        with pytest.raises(InvalidRequestError, match="reward 'pickscore': 1 prompts for 2 pictures"):
            await service.score_and_gradient(images, PROMPTS[:1])
        # A lone surrogate is a Python string that no tokenizer can encode.
        with pytest.raises(InvalidRequestError, match=r"reward 'pickscore': prompts\[0\] has half of a surrogate pair"):
            await service.score_and_gradient(images, ["\ud800", "red"])
        await service.check_health()
        await service.score_and_gradient(images, PROMPTS)
        assert (await service.describe())["spec"]["name"] == "pickscore"

    asyncio.run(scenario())


def test_a_model_that_gives_no_numbers_is_not_served(spec: Spec, rewards_root: Path, tmp_path: Path):
    directory = Path(shutil.copytree(rewards_root / "hps", tmp_path / "hps"))
    state = read_state_dict(directory / PUBLISHED_FILE)
    state["visual.proj"].fill_(torch.nan)
    torch.save({"state_dict": state}, directory / PUBLISHED_FILE)
    with pytest.raises(RewardFailedError, match=r"reward 'hps': checkpoint '.*' gives \[nan\]"):
        RewardService(spec("hps", checkpoint=str(directory)).model_dump())


def _damage(service: RewardService, value: float) -> None:
    """Change weights in place, as broken memory does."""
    with torch.no_grad():
        service._model.similarity.model.visual_projection.weight[0] += value


@pytest.mark.parametrize("value", [0.5, torch.nan])
def test_a_replica_whose_weights_are_damaged_is_unhealthy(spec: Spec, value: float):
    service = RewardService(spec("hps").model_dump())
    asyncio.run(service.check_health())
    _damage(service, value)
    for _ in range(2):
        with pytest.raises(RewardFailedError, match=r"reward 'hps': (the test picture scores|checkpoint .* gives)"):
            asyncio.run(service.check_health())


def test_a_replica_with_other_weights_than_its_spec_knows_does_not_start(spec: Spec):
    async def said(service: RewardService) -> float:
        return (await service.describe())["self_test_score"]

    score = asyncio.run(said(RewardService(spec("hps").model_dump())))
    assert asyncio.run(said(RewardService(spec("hps", self_test_score=score).model_dump()))) == score
    with pytest.raises(RewardFailedError, match=r"the test picture scores .*, expected .*: weights or device"):
        RewardService(spec("hps", self_test_score=score + 0.01).model_dump())


def test_a_replica_that_is_busy_is_healthy_and_what_the_test_finds_counts_later(spec: Spec, images, monkeypatch):
    monkeypatch.setattr("reward_services.deployment._HEALTH_CHECK_TIMEOUT_S", 0.2)
    service = RewardService(late(spec("hps"), 0.5).model_dump())

    async def scenario() -> None:
        request = asyncio.create_task(service.score_and_gradient(images, PROMPTS))
        await asyncio.sleep(0.1)
        _damage(service, torch.nan)
        start = time.monotonic()
        await service.check_health()
        assert time.monotonic() - start < 0.3
        await request
        await asyncio.sleep(0.1)
        with pytest.raises(RewardFailedError):
            await service.check_health()

    asyncio.run(scenario())


def test_a_replica_judges_prepared_inputs_as_it_judges_pictures_and_refuses_others(spec: Spec, images: np.ndarray):
    service = RewardService(spec("hps").model_dump())
    rule = Preprocess(**asyncio.run(service.describe())["rule"])
    inputs = rule.fitted(torch.tensor(images)).numpy()
    scores, gradient = asyncio.run(service.score_and_gradient(inputs, PROMPTS, prepared=True))
    expected, _ = asyncio.run(service.score_and_gradient(images, PROMPTS))
    np.testing.assert_array_equal(scores, expected)
    assert gradient.shape == inputs.shape
    with pytest.raises(InvalidRequestError, match=r"inputs has shape \(2, 3, 31, 44\): send \[batch, 3, 24, 24\]"):
        asyncio.run(service.score_and_gradient(images, PROMPTS, prepared=True))
    with pytest.raises(InvalidRequestError, match="finite values"):
        asyncio.run(service.score_and_gradient(inputs * np.float32(np.nan), PROMPTS, prepared=True))


def test_a_replica_counts_batches_and_errors_by_reward(spec: Spec, images: np.ndarray, monkeypatch):
    seen: list[tuple[str, float, dict[str, str]]] = []

    def record(self, value: float = 1.0, tags: dict[str, str] | None = None) -> None:
        seen.append((self.info["name"], value, self.info["default_tags"] | (tags or {})))

    monkeypatch.setattr("ray.util.metrics.Histogram.observe", record)
    monkeypatch.setattr("ray.util.metrics.Counter.inc", record)
    service = RewardService(late(spec("hps"), 0.05).model_dump())
    asyncio.run(service.score_and_gradient(images, PROMPTS))
    found = {name: value for name, value, tags in seen if tags == {"reward": "hps"}}
    assert found["reward_batch_images"] == 2
    assert 0.05 <= found["reward_compute_seconds"] < 5
    assert 0 <= found["reward_queue_seconds"] < 5
    seen.clear()
    with pytest.raises(InvalidRequestError):
        asyncio.run(service.score_and_gradient(images, ["", ""]))
    assert seen == [("reward_errors", 1.0, {"reward": "hps", "error": "InvalidRequestError"})]


def test_build_renders_load_health_and_draining(spec: Spec):
    fixed = build(spec("hps", num_replicas=2, health_check_period_s=7.0, drain_timeout_s=33.0))._bound_deployment
    assert (fixed.num_replicas, fixed._deployment_config.autoscaling_config) == (2, None)
    assert fixed._deployment_config.health_check_period_s == 7.0
    assert fixed._deployment_config.graceful_shutdown_timeout_s == 33.0
    scaled = build(
        spec("hps", num_replicas=2, max_replicas=5, target_ongoing_requests=3.0, upscale_delay_s=4.0)
    )._bound_deployment
    scaling = scaled._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (2, 5, 3.0)
    assert (scaling.upscale_delay_s, scaling.downscale_delay_s) == (4.0, 600.0)


def _no_model(spec: RewardSpec) -> None:
    raise LookupError("no model")


@pytest.mark.parametrize(("share", "capped"), [(0.25, [0.25]), (1.0, []), (0.0, [])])
def test_a_share_of_a_gpu_is_a_share_of_its_memory(spec: Spec, monkeypatch, share: float, capped: list[float]):
    found: list[float] = []
    monkeypatch.setattr("torch.cuda.set_per_process_memory_fraction", found.append)
    monkeypatch.setattr("reward_services.deployment.load", _no_model)  # there may be no GPU to load it on
    with pytest.raises(LookupError, match="no model"):
        RewardService(spec("hps", device="cuda", num_gpus=share).model_dump())
    assert found == capped


def test_a_late_reward_delays_answers_and_not_the_start(spec: Spec, images: np.ndarray):
    latency_s = 1.0
    start = time.monotonic()
    service = RewardService(late(spec("hps"), latency_s).model_dump())
    started = time.monotonic()
    asyncio.run(service.score_and_gradient(images, PROMPTS))
    assert time.monotonic() - started >= latency_s
    assert started - start < latency_s
