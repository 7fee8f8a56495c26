"""How rewards are combined, and what happens when one cannot be had: on one rank, and on two that must agree."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from slingstone.step.panel import PendingReward, RewardPanel, RewardsLost, RewardTerm, RunningScale, Scale, Tolerance
from tests.step.conftest import Ready, World, linear_reward, make_world

SLOPE = torch.tensor([1.0, 2.0, 3.0])
BATCH = 4


class Outage(RuntimeError):
    """An error that may be tolerated."""


class Failing:
    def result(self) -> tuple[Tensor, Tensor]:
        raise Outage("out of order")


def frail(term: RewardTerm, fails: Callable[[int], bool]) -> RewardTerm:
    """Return the reward that cannot be had in the calls, counted from 0, that `fails` names."""
    calls = iter(range(1000))

    def submit(images: Tensor, prompts: Sequence[str]) -> PendingReward:
        return Failing() if fails(next(calls)) else term.submit(images, prompts)

    return replace(term, submit=submit)


class Ranks:
    """Adds up what two threads bring; the second one to come takes the first one's along."""

    def __init__(self) -> None:
        self._barrier = threading.Barrier(2, timeout=20)
        self._brought: list[Tensor] = [torch.zeros(0)] * 2

    def adder(self, rank: int) -> Callable[[Tensor], Tensor]:
        def add(tensor: Tensor) -> Tensor:
            self._brought[rank] = tensor
            self._barrier.wait()
            total = self._brought[0] + self._brought[1]
            self._barrier.wait()
            return total

        return add


def both(run: Callable[[int, Callable[[Tensor], Tensor]], object]) -> list[object]:
    """Return what each of two ranks returned, or raised."""
    ranks, results = Ranks(), [None, None]

    def one(rank: int) -> None:
        try:
            results[rank] = run(rank, ranks.adder(rank))
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def pictures(seed: int = 0) -> Tensor:
    return torch.rand(BATCH, 3, 1, 1, generator=torch.Generator().manual_seed(seed))


def collect(panel: RewardPanel, images: Tensor):
    return panel.collect(panel.submit(images, ["a"] * len(images)), torch.ones(len(images), dtype=torch.bool))


DROP = Tolerance((Outage,), in_a_row=3)


def _gradients(world: World, steps: int) -> tuple[list[Tensor], list[dict[str, float]]]:
    """Return the generator's gradient and the metrics of each step."""
    found: list[Tensor] = []

    class Watching(world.engine):
        def step(self) -> float:
            if self.module is world.generator:
                found.append(torch.cat([parameter.grad.flatten() for parameter in self.module.parameters()]))
            return super().step()

    world.engine = Watching
    trainer = world.build()
    return found, [trainer.step() for _ in range(steps)]


def _world(rewards: list[RewardTerm], tolerance: Tolerance = Tolerance()) -> World:  # noqa: B008
    world = make_world(rewards=rewards, tolerance=tolerance)
    world.settings = replace(world.settings, reward_weight=2.0)
    return world


def test_one_ranks_failure_drops_the_reward_on_both_and_the_gradient_is_that_of_a_step_without_it():
    one, two = linear_reward("one", SLOPE), linear_reward("two", SLOPE.flip(0), 3.0)

    def run(rank: int, add: Callable[[Tensor], Tensor]):
        terms = [one, frail(two, lambda call: rank == 1 and call == 1)]
        panel = RewardPanel(terms, DROP, add)
        return [collect(panel, pictures(10 * rank + step)) for step in range(3)]

    for rank, judged in enumerate(both(run)):
        for step, found in enumerate(judged):
            terms = [one] if step == 1 else [one, two]
            expected = collect(RewardPanel(terms), pictures(10 * rank + step))
            assert torch.equal(found.gradient, expected.gradient)
            assert found.metrics["dropped/two"] == float(step >= 1)
            assert found.metrics["dropped/one"] == 0.0
            assert ("reward/two" in found.metrics) == (step != 1), "metrics have the same keys on all ranks"


def test_a_trainers_step_without_a_reward_is_that_of_a_run_that_never_had_it():
    one, two = linear_reward("one", SLOPE), linear_reward("two", SLOPE.flip(0))
    gradients, metrics = _gradients(_world([one, frail(two, lambda call: call == 0)], DROP), 1)
    expected, _ = _gradients(_world([one]), 1)
    assert torch.equal(gradients[0], expected[0])
    assert metrics[0]["dropped/two"] == 1.0
    gradients, _ = _gradients(_world([frail(one, lambda call: True)], DROP), 2)
    expected, _ = _gradients(_world([]), 2)
    assert all(torch.equal(found, wanted) for found, wanted in zip(gradients, expected, strict=True))


def test_both_ranks_stop_together_when_a_reward_was_dropped_too_often_in_a_row():
    def run(rank: int, add: Callable[[Tensor], Tensor]):
        # fails in the steps 0 and 1, is back in 2, and fails again from 3 on
        panel = RewardPanel([frail(linear_reward("two", SLOPE), lambda call: rank == 1 and call != 2)], DROP, add)
        done = []
        try:
            for step in range(9):
                done.append(collect(panel, pictures(step)).metrics["dropped/two"])
        except RewardsLost as error:
            return done, str(error)

    first, second = both(run)
    assert first == (
        [1.0, 2.0, 2.0, 3.0, 4.0],
        "reward 'two' failed in 3 steps in a row, the last time: on 1 other ranks",
    )
    assert second == (first[0], "reward 'two' failed in 3 steps in a row, the last time: out of order")


def test_by_default_a_failure_stops_the_run_and_the_generator_is_as_before():
    world = _world([linear_reward("one", SLOPE), frail(linear_reward("two", SLOPE), lambda call: True)])
    trainer = world.build()
    before = [parameter.detach().clone() for parameter in world.generator.parameters()]
    with pytest.raises(Outage, match="out of order"):
        trainer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, world.generator.parameters(), strict=True))


def test_an_error_that_is_not_tolerated_stops_the_run_even_if_others_are():
    class Refused(ValueError):
        pass

    def submit(images: Tensor, prompts: Sequence[str]) -> PendingReward:
        raise Refused("pixels lie in [0, 255]")

    with pytest.raises(Refused):
        collect(RewardPanel([RewardTerm("one", 1.0, submit)], DROP), pictures())


def test_a_fixed_scale_divides_score_and_gradient():
    scaled = replace(linear_reward("one", SLOPE, 3.0), scale=Scale(mean=5.0, std=4.0))
    found = collect(RewardPanel([scaled, linear_reward("two", SLOPE.flip(0))]), pictures())
    torch.testing.assert_close(found.gradient[:, :, 0, 0], (0.75 * SLOPE + SLOPE.flip(0)).expand(BATCH, 3))
    mean = (pictures()[..., 0, 0] @ SLOPE).mean()
    assert float(found.metrics["reward/one"]) == pytest.approx(float(mean))
    assert float(found.metrics["normalised/one"]) == pytest.approx(float(mean - 5) / 4)
    assert "normalised/two" not in found.metrics


def test_the_norm_of_each_rewards_own_gradient_is_logged_whatever_its_weight_and_scale():
    terms = [replace(linear_reward("one", SLOPE, 3.0), scale=Scale(5.0, 4.0)), linear_reward("two", 2 * SLOPE, 0.0)]
    metrics = collect(RewardPanel(terms), pictures()).metrics
    norm = float(SLOPE.norm())
    assert float(metrics["grad_norm/reward/one"]) == pytest.approx(norm)
    assert float(metrics["grad_norm/reward/two"]) == pytest.approx(2 * norm)


def constant_scores(scores: Sequence[Sequence[float]]) -> Callable[[Tensor, Sequence[str]], PendingReward]:
    """Return a reward with these scores, call by call, and a gradient of ones."""
    calls = iter(scores)
    return lambda images, prompts: Ready((torch.tensor(next(calls)), torch.ones_like(images)))


def test_a_running_scale_is_the_mean_and_deviation_of_all_ranks_scores():
    scores = [[[1.0, 2.0], [3.0, 9.0]], [[4.0, 4.0], [0.0, float("nan")]]]

    def run(rank: int, add: Callable[[Tensor], Tensor]):
        term = RewardTerm("one", 1.0, constant_scores(scores[rank]), RunningScale(1e12))
        panel = RewardPanel([term], sum_over_ranks=add)
        return [collect(panel, pictures()[:2]) for _ in range(2)]

    seen = torch.tensor([1.0, 2.0, 4.0, 4.0, 3.0, 9.0, 0.0], dtype=torch.float64)
    for judged in both(run):
        for found, until in zip(judged, (4, 7), strict=True):
            std = float(seen[:until].std(correction=0))
            finite = found.gradient[found.finite]
            torch.testing.assert_close(finite, torch.full_like(finite, 1 / std))


def test_a_running_scale_forgets_by_half_every_half_life_and_survives_a_checkpoint():
    scores = [[0.0, 2.0], [10.0, 16.0], [5.0, 6.0]]
    term = RewardTerm("one", 1.0, constant_scores(scores), RunningScale(half_life_images=2.0))
    panel = RewardPanel([term])
    for _ in range(2):
        found = collect(panel, pictures()[:2])
    weights, seen = torch.tensor([0.5, 0.5, 1.0, 1.0]), torch.tensor([0.0, 2.0, 10.0, 16.0])
    mean = (weights * seen).sum() / weights.sum()
    std = ((weights * (seen - mean) ** 2).sum() / weights.sum()).sqrt()
    torch.testing.assert_close(found.gradient, torch.full_like(found.gradient, float(1 / std)))

    restored = RewardPanel([replace(term, submit=constant_scores(scores[2:]))])
    restored.load_state_dict(panel.state_dict())
    assert torch.equal(collect(restored, pictures()[:2]).gradient, collect(panel, pictures()[:2]).gradient)
    fresh = RewardPanel([replace(term, submit=constant_scores(scores[2:]))])
    fresh.load_state_dict({})
    assert float(collect(fresh, pictures()[:2]).gradient[0, 0, 0, 0]) == pytest.approx(1 / 0.5)


def test_a_reward_that_does_not_vary_is_left_at_its_scale():
    term = RewardTerm("one", 2.0, constant_scores([[0.3, 0.3, 0.3]]), RunningScale(100.0))
    found = collect(RewardPanel([term]), pictures()[:3])
    assert torch.equal(found.gradient, torch.full_like(found.gradient, 2.0))
    assert float(found.metrics["normalised/one"]) == pytest.approx(0.0, abs=1e-6)
