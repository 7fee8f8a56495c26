"""The clients, without a cluster: a fake service stands in for Serve's answers."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import jaxtyping
import numpy as np
import pytest
import ray.exceptions
import torch
from ray.serve.exceptions import BackPressureError, RayServeException
from torch import Tensor, nn

from reward_services import client
from reward_services.client import (
    InProcessClient,
    ServeClient,
    differentiable,
)
from reward_services.http_client import HttpClient
from reward_services.prepared import PreparingClient
from reward_services.preprocess import hps_preprocess
from reward_services.protocol import (
    InvalidRequestError,
    RewardClient,
    RewardFailedError,
    RewardOverloadedError,
    RewardUnavailableError,
)
from tests.reward_services.test_protocol import BAD


class Quadratic(nn.Module):
    """`s_i = w_i sum(x_i^2)`, where the weight is the number in the prompt."""

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        weights = torch.tensor([float(prompt) for prompt in prompts], dtype=images.dtype)
        return weights * images.square().sum(dim=(1, 2, 3))


class Broken(nn.Module):
    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        raise ArithmeticError("no judgement")


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 4, 5, generator=torch.Generator().manual_seed(0))


PROMPTS = ["1", "-2", "3"]


def test_in_process_returns_scores_and_each_pictures_own_gradient(images: Tensor):
    scores, gradient = InProcessClient(Quadratic()).submit(images, PROMPTS).result()
    weights = torch.tensor([1.0, -2.0, 3.0])
    torch.testing.assert_close(scores, weights * images.square().sum(dim=(1, 2, 3)))
    torch.testing.assert_close(gradient, 2 * weights.view(3, 1, 1, 1) * images)
    assert not scores.requires_grad
    assert not gradient.requires_grad


def test_scores_alone_are_computed_without_a_gradient_in_process(images: Tensor):
    seen = []

    class Watching(Quadratic):
        def score(self, images: Tensor, prompts: list[str]) -> Tensor:
            seen.append((torch.is_grad_enabled(), images.requires_grad))
            return super().score(images, prompts)

    client = InProcessClient(Watching())
    scores = client.submit_for_scores(images.requires_grad_(True), PROMPTS).result()
    assert torch.equal(scores, client.submit(images, PROMPTS).result()[0])
    assert seen == [(False, False), (True, True)]


def test_in_process_works_without_gradient_and_leaves_the_pictures_graph_alone(images: Tensor):
    leaf = images.clone().requires_grad_(True)
    with torch.no_grad():
        _, gradient = InProcessClient(Quadratic()).submit(leaf * 1.0, PROMPTS).result()
    assert gradient.abs().sum() > 0
    assert leaf.grad is None


def test_half_precision_pictures_are_judged_in_single(images: Tensor):
    scores, gradient = InProcessClient(Quadratic()).submit(images.bfloat16(), PROMPTS).result()
    assert scores.dtype == gradient.dtype == torch.float32


def test_in_process_failure_names_the_reward(images: Tensor):
    with pytest.raises(RewardFailedError, match="reward 'mine': ArithmeticError: no judgement"):
        InProcessClient(Broken(), "mine").submit(images, PROMPTS).result()
    with pytest.raises(InvalidRequestError, match="2 prompts for 3 pictures"):
        InProcessClient(Quadratic(), "mine").submit(images, PROMPTS[:2]).result()


def test_differentiable_passes_gradcheck(images: Tensor):
    model = InProcessClient(Quadratic())

    def scores(x: Tensor) -> Tensor:
        return differentiable(x, model.submit(x, PROMPTS))

    assert torch.autograd.gradcheck(scores, (images.double().requires_grad_(True),))


def test_differentiable_equals_ordinary_autograd_and_may_be_used_twice(images: Tensor):
    cotangent = torch.tensor([0.3, -1.0, 2.0])
    leaf = images.clone().requires_grad_(True)
    decoded = leaf.tanh()
    pending = InProcessClient(Quadratic()).submit(decoded, PROMPTS)
    loss = (cotangent * differentiable(decoded, pending)).sum() + differentiable(decoded, pending)[1]
    (gradient,) = torch.autograd.grad(loss, leaf)

    other = images.clone().requires_grad_(True)
    scores = Quadratic().score(other.tanh(), PROMPTS)
    (expected,) = torch.autograd.grad((cotangent * scores).sum() + scores[1], other)
    torch.testing.assert_close(gradient, expected)


def test_second_derivatives_are_refused_rather_than_wrong(images: Tensor):
    leaf = images.clone().requires_grad_(True)
    scores = differentiable(leaf, InProcessClient(Quadratic()).submit(leaf, PROMPTS))
    (gradient,) = torch.autograd.grad(scores.square().sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


Outcome = tuple[np.ndarray, ...] | Exception


@dataclass
class FakeService:
    """Answers request after request from a script; the last outcome repeats. None hangs until the timeout."""

    script: list[Outcome | None]
    sent: list[tuple[object, list[str]]] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)
    cancelled: int = 0

    @property
    def score_and_gradient(self) -> "FakeService":
        self.methods.append("score_and_gradient")
        return self

    @property
    def score(self) -> "FakeService":
        self.methods.append("score")
        return self

    def remote(self, reference: object, prompts: list[str]) -> "FakeResponse":
        self.sent.append((reference, prompts))
        return FakeResponse(self, self.script[min(len(self.sent), len(self.script)) - 1])


@dataclass
class FakeResponse:
    service: FakeService
    outcome: Outcome | None

    def result(self, *, timeout_s: float) -> tuple[np.ndarray, ...]:
        if self.outcome is None:
            time.sleep(timeout_s)
            raise TimeoutError
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def cancel(self) -> None:
        self.service.cancelled += 1


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeService]:
    """Return a function that deploys a FakeService with a script."""
    applications: dict[str, FakeService] = {}

    def handle(application: str) -> FakeService:
        if application not in applications:
            raise RayServeException(f"Application '{application}' does not exist.")
        return applications[application]

    monkeypatch.setattr(client.serve, "get_app_handle", handle)

    def deploy(*script: Outcome | None) -> FakeService:
        applications["reward-fake"] = FakeService(list(script))
        return applications["reward-fake"]

    deploy.applications = applications  # type: ignore[attr-defined]
    return deploy


def _store() -> client.ImageStore:
    return client.ImageStore(put=lambda array: ("reference", array))


def _client(deadline_s: float = 60.0) -> ServeClient:
    return ServeClient("fake", deadline_s, _store())


def _answer(images: Tensor) -> tuple[np.ndarray, np.ndarray]:
    scores, gradient = np.arange(len(images), dtype=np.float32), images.numpy() * 2
    for array in (scores, gradient):
        array.flags.writeable = False  # as everything that comes out of the object store
    return scores, gradient


def test_scores_alone_are_asked_for_and_answered_without_a_gradient(serve, images: Tensor):
    service = serve(_died(), _answer(images)[:1], _answer(images))
    assert _client().submit_for_scores(images, PROMPTS).result().tolist() == [0.0, 1.0, 2.0]
    assert service.methods == ["score", "score"]
    with pytest.raises(RewardFailedError, match=r"has the shapes \[\(3,\), \(3, 3, 4, 5\)\], not \[\(3,\)\]"):
        _client().submit_for_scores(images, PROMPTS).result()


@pytest.mark.parametrize("shape", [(2,), (3, 1), (3, 3), ()])
def test_an_answer_of_another_shape_is_an_error_and_no_gradient(serve, images: Tensor, shape: tuple[int, ...]):
    serve((np.zeros(shape, np.float32), images.numpy()))
    with pytest.raises(RewardFailedError, match=r"reward 'fake': the answer to pictures of shape \(3, 3, 4, 5\) has"):
        _client().submit(images, PROMPTS).result()


def _died() -> Exception:
    return ray.exceptions.ActorDiedError()


def test_a_served_answer_is_writable_and_lies_where_the_pictures_lie(serve, images: Tensor):
    serve(_answer(images))
    scores, gradient = _client().submit(images, PROMPTS).result()
    torch.testing.assert_close(gradient, images * 2)
    gradient.zero_()
    scores.zero_()


def test_pictures_cross_as_float32_arrays_and_prompts_as_a_list(serve, images: Tensor):
    service = serve(_answer(images))
    _client().submit(images.double().requires_grad_(True), tuple(PROMPTS)).result()
    ((_, array), prompts) = service.sent[0]
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, images.numpy())
    assert prompts == PROMPTS


def test_the_same_pictures_are_stored_once_for_all_services(serve, images: Tensor):
    service = serve(_answer(images))
    store = _store()
    clients = [ServeClient("fake", store=store) for _ in range(3)]
    for one in clients:
        one.submit(images, PROMPTS)
    references = [reference for reference, _ in service.sent]
    assert references[0] is references[1] is references[2]

    images.mul_(0.5)
    clients[0].submit(images, PROMPTS)
    np.testing.assert_array_equal(service.sent[-1][0][1], images.numpy())
    other = images.clone()
    clients[0].submit(other, PROMPTS)
    assert service.sent[-1][0] is not service.sent[-2][0]


@pytest.mark.parametrize(
    "trouble",
    [_died(), BackPressureError(num_queued_requests=9, max_queued_requests=8), ray.exceptions.TaskCancelledError()],
    ids=lambda error: type(error).__name__,
)
def test_a_request_lost_by_the_service_is_sent_again(serve, images: Tensor, trouble: Exception):
    service = serve(trouble, trouble, _answer(images))
    scores, _ = _client(deadline_s=10.0).submit(images, PROMPTS).result()
    assert scores.tolist() == [0.0, 1.0, 2.0]
    assert len(service.sent) == 3
    assert service.sent[0] == service.sent[2]


def test_an_answer_is_fetched_once(serve, images: Tensor):
    service = serve(_answer(images), _died())
    pending = _client().submit(images, PROMPTS)
    assert pending.result()[0] is pending.result()[0]
    assert len(service.sent) == 1


def test_a_reward_that_never_answers_is_an_error_at_the_deadline(serve, images: Tensor):
    service = serve(None)
    start = time.monotonic()
    with pytest.raises(RewardUnavailableError, match=r"reward 'fake': no answer within 0\.2 s after 1 attempts"):
        _client(deadline_s=0.2).submit(images, PROMPTS).result()
    assert 0.15 < time.monotonic() - start < 2
    assert service.cancelled == 1


def test_a_reward_whose_replicas_keep_dying_is_an_error_at_the_deadline(serve, images: Tensor):
    serve(_died())
    with pytest.raises(RewardUnavailableError, match=r"after [3-9] attempts \(the last one ended with ActorDiedError"):
        _client(deadline_s=0.5).submit(images, PROMPTS).result()


def test_a_queue_that_is_full_until_the_deadline_is_an_error_of_its_own(serve, images: Tensor):
    full = BackPressureError(num_queued_requests=9, max_queued_requests=8)
    serve(full)
    with pytest.raises(RewardOverloadedError, match=r"reward 'fake': no answer within 0\.3 s .*backpressure"):
        _client(deadline_s=0.3).submit(images, PROMPTS).result()
    serve(full, _died())  # the last word counts: nobody is there any more
    with pytest.raises(RewardUnavailableError) as caught:
        _client(deadline_s=0.3).submit(images, PROMPTS).result()
    assert type(caught.value) is RewardUnavailableError


def test_of_two_rewards_one_that_fails_is_named_and_leaves_the_other_as_it_is(images: Tensor):
    whole, broken = InProcessClient(Quadratic(), "whole"), InProcessClient(Broken(), "broken")
    leaf = images.clone().requires_grad_(True)
    pending = [client.submit(leaf, PROMPTS) for client in (whole, broken)]
    with pytest.raises(RewardFailedError, match="reward 'broken'"):
        sum(differentiable(leaf, request).sum() for request in reversed(pending))
    differentiable(leaf, pending[0]).sum().backward()
    torch.testing.assert_close(leaf.grad, 2 * torch.tensor([1.0, -2.0, 3.0]).view(3, 1, 1, 1) * images)


def test_a_reward_that_is_deleted_is_an_error_at_once(serve, images: Tensor):
    serve(_died())
    pending = _client(deadline_s=30.0).submit(images, PROMPTS)
    serve.applications.clear()
    start = time.monotonic()
    with pytest.raises(RewardUnavailableError, match="no Serve application 'reward-fake' is running"):
        pending.result()
    assert time.monotonic() - start < 5


def test_a_reward_that_is_not_deployed_is_an_error_before_any_request(serve):
    with pytest.raises(RewardUnavailableError, match="reward 'absent': no Serve application 'reward-absent'"):
        ServeClient("absent")


WAYS: dict[str, Callable[[], RewardClient]] = {
    "in process": lambda: InProcessClient(Quadratic(), "fake"),
    "serve": lambda: ServeClient("fake", store=_store()),
    "http": lambda: HttpClient("http://127.0.0.1:1", "fake", deadline_s=0.1),
    "prepared": lambda: PreparingClient(InProcessClient(Quadratic(), "fake"), hps_preprocess(4, "exact")),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", sorted(BAD.keys() - {"double precision"}))  # which is converted
def test_what_the_service_refuses_is_refused_before_it_is_sent_whatever_the_way(
    serve, monkeypatch: pytest.MonkeyPatch, way: str, case: str
):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as it is outside of tests
    service = serve(_died())
    images, prompts, message = BAD[case]
    given = torch.from_numpy(images) if isinstance(images, np.ndarray) else images
    with pytest.raises(InvalidRequestError, match=message) as caught:
        WAYS[way]().submit(given, prompts)
    assert str(caught.value).startswith("reward 'fake': ")
    with pytest.raises(InvalidRequestError, match=message):
        WAYS[way]().submit_for_scores(given, prompts)
    assert not service.sent


def _task_error(cause: Exception) -> Exception:
    return ray.exceptions.RayTaskError("score_and_gradient", "traceback", cause).as_instanceof_cause()


def test_what_the_service_raises_is_not_retried(serve, images: Tensor):
    service = serve(_task_error(InvalidRequestError("fake", "pixels lie in [0, 255]")))
    with pytest.raises(InvalidRequestError, match=r"reward 'fake': pixels lie in \[0, 255\]"):
        _client().submit(images, PROMPTS).result()
    assert len(service.sent) == 1
    serve(_task_error(ArithmeticError("no judgement")))
    with pytest.raises(RewardFailedError, match="reward 'fake': ArithmeticError: no judgement"):
        _client().submit(images, PROMPTS).result()
