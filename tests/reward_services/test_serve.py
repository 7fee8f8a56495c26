"""The rewards as they are deployed: on a local Ray cluster, with replicas that can be killed."""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from ray import serve
from ray.serve.config import ProxyLocation
from ray.serve.schema import ServeDeploySchema
from torch import Tensor

from reward_services.client import (
    ImageStore,
    InProcessClient,
    ServeClient,
    differentiable,
)
from reward_services.deployment import RewardService, build
from reward_services.models import load
from reward_services.protocol import InvalidRequestError, RewardUnavailableError
from reward_services.spec import RewardSpec
from tests.reward_services.replicas import pids
from workbench.late_reward import late

Spec = Callable[..., RewardSpec]
KINDS = ("pickscore", "hps", "imagereward")
PROMPTS = ["a red circle", "it's a blue square on green", "green"]
LATENCY_S = 0.6
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 31, 44, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def three(cluster: None, spec: Spec) -> Iterator[None]:
    """The three rewards, deployed as a job deploys them."""
    targets = [serve.RunTarget(build(spec(kind, num_cpus=0.0)), f"reward-{kind}", None) for kind in KINDS]
    serve.run_many(targets)
    yield
    for kind in KINDS:
        serve.delete(f"reward-{kind}")


@pytest.fixture(scope="module")
def frail(
    cluster: None, spec: Spec, rewards_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[RewardSpec, Path]]:
    """A slow reward with a checkpoint of its own, to be broken; the last test that uses it leaves it broken."""
    checkpoint = Path(shutil.copytree(rewards_root / "hps", tmp_path_factory.mktemp("frail") / "hps"))
    service = late(spec("hps", name="frail", checkpoint=str(checkpoint), num_cpus=0.0), LATENCY_S)
    serve.run(build(service), name=service.app_name, route_prefix=None)
    yield service, checkpoint
    serve.delete(service.app_name)


@pytest.mark.ray
def test_served_scores_and_gradients_equal_in_process_ones_bit_for_bit(three: None, spec: Spec, images: Tensor):
    store = ImageStore()
    pending = {kind: ServeClient(kind, store=store).submit(images, PROMPTS) for kind in KINDS}
    for kind in KINDS:
        scores, gradient = pending[kind].result()
        expected, expected_gradient = InProcessClient(load(spec(kind))).submit(images, PROMPTS).result()
        assert torch.equal(scores, expected)
        assert torch.equal(gradient, expected_gradient)
        assert torch.equal(ServeClient(kind, store=store).submit_for_scores(images, PROMPTS).result(), expected)


@pytest.mark.ray
def test_a_weighted_sum_of_served_rewards_backpropagates_into_what_drew_the_pictures(
    three: None, spec: Spec, images: Tensor
):
    weights = {"pickscore": 0.1, "hps": 2.0, "imagereward": 1.0}

    def gradient(clients: dict[str, Any]) -> Tensor:
        latents = images.logit().requires_grad_(True)
        pictures = latents.sigmoid()
        pending = {kind: client.submit(pictures, PROMPTS) for kind, client in clients.items()}
        loss = sum(weights[kind] * differentiable(pictures, pending[kind]).mean() for kind in KINDS)
        return torch.autograd.grad(loss, latents)[0]

    served = gradient({kind: ServeClient(kind) for kind in KINDS})
    local = gradient({kind: InProcessClient(load(spec(kind))) for kind in KINDS})
    assert torch.equal(served, local)


BAD_REQUESTS: dict[str, tuple[Any, Any]] = {
    "nan": (np.full((1, 3, 8, 8), np.nan, np.float32), ["red"]),
    "range": (np.full((1, 3, 8, 8), 255.0, np.float32), ["red"]),
    "dtype": (np.zeros((1, 3, 8, 8), np.float64), ["red"]),
    "shape": (np.zeros((1, 8, 8, 3), np.float32), ["red"]),
    "no array": ([0.5], ["red"]),
    "prompts": (np.zeros((1, 3, 8, 8), np.float32), ["red", "blue"]),
    "empty prompt": (np.zeros((1, 3, 8, 8), np.float32), [""]),
}


@pytest.mark.ray
def test_bad_requests_are_typed_errors_and_the_replica_lives_on(three: None, images: Tensor):
    before = pids("hps")
    handle = serve.get_app_handle("reward-hps")
    for case, (pixels, prompts) in BAD_REQUESTS.items():
        with pytest.raises(InvalidRequestError, match="reward 'hps'"):
            handle.score_and_gradient.remote(pixels, prompts).result(timeout_s=30)
        assert case
    with pytest.raises(InvalidRequestError, match="2 prompts for 3 pictures"):
        ServeClient("hps").submit(images, PROMPTS[:2]).result()
    ServeClient("hps").submit(images, PROMPTS).result()
    assert pids("hps") == before
    assert len(before) == 1


@pytest.mark.ray
def test_a_spec_with_a_weight_is_served_without_it(three: None):
    described = serve.get_app_handle("reward-hps").describe.remote().result(timeout_s=30)["spec"]
    assert set(described) == set(RewardSpec.model_fields)
    assert described["model"] == "hps"


@pytest.mark.ray
def test_concurrent_requests_share_forward_passes(frail: tuple[RewardSpec, Path], spec: Spec, images: Tensor):
    client = ServeClient("frail")
    client.submit(images[:1], PROMPTS[:1]).result()
    start = time.monotonic()
    pending = [client.submit(images[index % 3][None], [PROMPTS[index % 3]]) for index in range(8)]
    answers = [request.result() for request in pending]
    # Eight passes one by one would sleep eight times; the first starts alone, the others share the next ones.
    assert time.monotonic() - start < 5 * LATENCY_S
    expected, expected_gradient = InProcessClient(load(spec("hps"))).submit(images, PROMPTS).result()
    for index, (scores, gradient) in enumerate(answers):
        # A batch of another size may add in another order.
        torch.testing.assert_close(scores, expected[index % 3][None], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradient, expected_gradient[index % 3][None], rtol=1e-3, atol=1e-6)


@pytest.mark.ray
def test_a_service_answers_while_the_caller_works(frail: tuple[RewardSpec, Path], images: Tensor):
    client = ServeClient("frail")
    client.submit(images, PROMPTS).result()
    pending = client.submit(images, PROMPTS)
    time.sleep(2 * LATENCY_S)  # stands in for the score networks
    start = time.monotonic()
    pending.result()
    assert time.monotonic() - start < 0.5 * LATENCY_S, "the request was under way before it was awaited"


@pytest.mark.slow
@pytest.mark.ray
def test_a_request_whose_replica_is_killed_is_answered_by_another_with_the_same_numbers(
    frail: tuple[RewardSpec, Path], images: Tensor
):
    client = ServeClient("frail", deadline_s=120.0)
    expected, expected_gradient = client.submit(images, PROMPTS).result()
    pending = client.submit(images, PROMPTS)
    time.sleep(0.4 * LATENCY_S)
    (victim,) = pids("frail")
    os.kill(victim, signal.SIGKILL)
    scores, gradient = pending.result()
    assert victim not in pids("frail")
    assert torch.equal(scores, expected)
    assert torch.equal(gradient, expected_gradient)


@pytest.mark.ray
def test_a_reward_without_any_replica_is_an_error_by_its_deadline(frail: tuple[RewardSpec, Path], images: Tensor):
    _, checkpoint = frail
    client = ServeClient("frail", deadline_s=3.0)
    client.submit(images, PROMPTS).result()
    shutil.rmtree(checkpoint)  # no new replica can start
    for pid in pids("frail"):
        os.kill(pid, signal.SIGKILL)
    start = time.monotonic()
    with pytest.raises(RewardUnavailableError, match=r"reward 'frail': no answer within 3 s"):
        client.submit(images, PROMPTS).result()
    assert time.monotonic() - start < 6.0


@pytest.mark.ray
def test_a_reward_that_is_not_deployed_is_named_at_once(cluster: None):
    with pytest.raises(RewardUnavailableError, match="reward 'absent': no Serve application 'reward-absent'"):
        ServeClient("absent")


@pytest.mark.slow
@pytest.mark.ray
def test_a_checkpoint_that_cannot_be_served_fails_the_deployment(cluster: None, spec: Spec, tmp_path: Path):
    broken = spec("hps", name="broken", checkpoint=str(tmp_path), num_cpus=0.0)
    try:
        with pytest.raises(RuntimeError, match="reward-broken"):
            serve.run(build(broken), name=broken.app_name, route_prefix=None)
        status = serve.status().applications["reward-broken"]
        assert "holds 0 .pt files" in "".join(part.message for part in status.deployments.values())
    finally:
        serve.delete(broken.app_name)


@pytest.mark.parametrize("config", ["rewards.yaml", "rewards_http.yaml"])
def test_each_yaml_deploys_the_three_rewards_through_build(config: str):
    schema = ServeDeploySchema(**yaml.safe_load((ROOT / "configs" / "serve" / config).read_text()))
    over_http = config == "rewards_http.yaml"
    assert (schema.proxy_location, schema.http_options.host) == (
        (ProxyLocation.HeadOnly, "127.0.0.1") if over_http else (ProxyLocation.Disabled, "0.0.0.0")
    )
    assert [application.name for application in schema.applications] == [f"reward-{kind}" for kind in KINDS]
    for application in schema.applications:
        assert application.route_prefix == (f"/{application.name}" if over_http else None)
        module, _, attribute = application.import_path.partition(":")
        assert (module, attribute) == (build.__module__, build.__name__)
        spec = RewardSpec(**application.args)
        assert (spec.app_name, spec.http.access) == (application.name, "token")
        assert build(spec)._bound_deployment.name == RewardService.__name__


def test_build_reserves_what_the_spec_says(spec: Spec):
    deployment = build(
        spec("hps", num_replicas=3, num_cpus=2.0, num_gpus=0.25, max_batch_images=7, max_queued_requests=9)
    )._bound_deployment
    assert deployment.num_replicas == 3
    assert deployment.ray_actor_options["num_cpus"] == 2.0
    assert deployment.ray_actor_options["num_gpus"] == 0.25
    assert deployment.max_ongoing_requests >= 7
    assert deployment.max_queued_requests == 9


@pytest.mark.ray
def test_the_example_of_the_readme_runs(three: None):
    readme = (ROOT / "reward_services" / "README.md").read_text()
    example = readme.split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["latents"].grad.abs().sum() > 0
