"""Services under load, in bad health, being stopped and being watched: on the session's cluster."""

import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
import torch
from ray import serve
from torch import Tensor

from reward_services.client import InProcessClient, ServeClient
from reward_services.deployment import build
from reward_services.models import load
from reward_services.protocol import RewardOverloadedError
from reward_services.spec import RewardSpec
from tests.reward_services.replicas import pids, wait_until
from workbench.late_reward import late

Spec = Callable[..., RewardSpec]
PROMPTS = ["a red circle"]
LATENCY_S = 2.0


@pytest.fixture
def images() -> Tensor:
    return torch.rand(1, 3, 31, 44, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def narrow(cluster: None, spec: Spec) -> Iterator[RewardSpec]:
    """A slow reward that takes two requests at once and keeps one waiting; its last test deletes it."""
    one = late(spec("hps", name="narrow", max_batch_images=1, max_queued_requests=1, num_cpus=0.0), LATENCY_S)
    serve.run(build(one), name=one.app_name, route_prefix=None)
    yield one
    serve.delete(one.app_name)


@pytest.mark.ray
def test_who_is_turned_away_comes_again_or_is_told_at_the_deadline(narrow: RewardSpec, spec: Spec, images: Tensor):
    patient, hasty = ServeClient("narrow", deadline_s=120.0), ServeClient("narrow", deadline_s=0.5)
    expected, _ = patient.submit(images, PROMPTS).result()
    sent = []
    for _ in range(5):  # more than the replica and the client's queue hold
        sent.append(hasty.submit(images, PROMPTS))
        time.sleep(0.1)
    with pytest.raises(RewardOverloadedError, match=r"reward 'narrow': no answer within 0\.5 s after [2-9] attempts"):
        sent[-1].result()
    pending = [patient.submit(images, PROMPTS) for _ in range(4)]
    for request in pending:
        assert torch.equal(request.result()[0], expected)


@pytest.mark.ray
def test_what_a_replica_counted_is_scraped_from_the_node_by_reward(narrow: RewardSpec, images: Tensor):
    ServeClient("narrow").submit(images, PROMPTS).result()
    (node,) = ray.nodes()

    def counted(name: str) -> float:
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        with urllib.request.urlopen(url, timeout=20) as answer:
            lines = [line for line in answer.read().decode().splitlines() if 'reward="narrow"' in line]
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name}_count{{"))

    names = ("ray_reward_batch_images", "ray_reward_queue_seconds", "ray_reward_compute_seconds")
    wait_until(lambda: all(counted(name) > 0 for name in names), timeout_s=60)


@pytest.mark.ray
def test_a_replica_that_is_stopped_answers_what_it_has(narrow: RewardSpec, spec: Spec, images: Tensor):
    expected, gradient = InProcessClient(load(spec("hps"))).submit(images, PROMPTS).result()
    pending = ServeClient("narrow", deadline_s=60.0).submit(images, PROMPTS)
    time.sleep(0.3 * LATENCY_S)
    stopping = threading.Thread(target=serve.delete, args=("reward-narrow",))
    stopping.start()
    found = pending.result()
    stopping.join()
    assert torch.equal(found[0], expected)
    assert torch.equal(found[1], gradient)
    assert pids("narrow") == []


@pytest.mark.ray
def test_a_replica_whose_test_score_moved_is_replaced(cluster: None, tmp_path: Path, images: Tensor):
    """The reward is one of the tests' own, which the specification names by its class."""
    weight = tmp_path / "weight"
    weight.write_text("2.0")
    model, checkpoint = "tests.reward_services.fragile:Fragile", str(weight)
    one = RewardSpec(name="fragile", model=model, checkpoint=checkpoint, num_cpus=0.0, health_check_period_s=0.5)
    serve.run(build(one), name=one.app_name, route_prefix=None)
    try:
        (before,) = pids("fragile")
        weight.write_text("3.0")
        wait_until(lambda: before not in pids("fragile"), timeout_s=60)
        scores, gradient = ServeClient("fragile", deadline_s=60.0).submit(images, PROMPTS).result()
        torch.testing.assert_close(scores, 3.0 * images.mean(dim=(1, 2, 3)))
        torch.testing.assert_close(gradient, torch.full_like(images, 3.0 / images[0].numel()))
    finally:
        serve.delete(one.app_name)


@pytest.mark.ray
@pytest.mark.slow
def test_load_starts_replicas_and_its_end_stops_them(cluster: None, spec: Spec, images: Tensor):
    plain = spec(
        "hps",
        name="elastic",
        max_batch_images=1,
        num_cpus=0.0,
        max_replicas=3,
        target_ongoing_requests=1.0,
        upscale_delay_s=1.0,
        downscale_delay_s=2.0,
    )
    one = late(plain, 1.0)
    serve.run(build(one), name=one.app_name, route_prefix=None)
    try:
        client = ServeClient("elastic", deadline_s=300.0)
        expected, _ = client.submit(images, PROMPTS).result()
        assert len(pids("elastic")) == 1
        pending = [client.submit(images, PROMPTS) for _ in range(60)]
        wait_until(lambda: len(pids("elastic")) == 3, timeout_s=120)
        assert all(torch.equal(request.result()[0], expected) for request in pending)
        wait_until(lambda: len(pids("elastic")) == 1, timeout_s=120)
    finally:
        serve.delete(one.app_name)
