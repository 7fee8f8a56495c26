"""What one alternating step does, and in which order."""

import copy
import time
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from slingstone.objectives.divergence import Divergence, Guidance, IntegralKL
from slingstone.step.panel import PendingReward, RewardTerm
from slingstone.step.trainer import Timesteps
from tests.step.conftest import weights, without_times

SLOPE = torch.tensor([1.0, 2.0, 3.0])


def same(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def reached(parameter: Tensor) -> bool:
    return parameter.grad is not None and bool(parameter.grad.any())


class Journal:
    """Writes down who was called, in order."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def network(self, name: str, module: nn.Module) -> nn.Module:
        module.register_forward_hook(lambda *_: self.lines.append(name))
        return module

    def reward(self, term: RewardTerm) -> RewardTerm:
        def submit(images: Tensor, prompts: Sequence[str]) -> PendingReward:
            self.lines.append(f"submit {term.name}")
            return Late(self, term.name, term.submit(images, prompts))

        return replace(term, submit=submit)


class Late:
    def __init__(self, journal: Journal, name: str, pending: PendingReward) -> None:
        self.journal, self.name, self.pending = journal, name, pending

    def result(self) -> tuple[Tensor, Tensor]:
        self.journal.lines.append(f"await {self.name}")
        return self.pending.result()


def test_rewards_are_asked_before_the_score_networks_run_and_awaited_after(world, reward):
    journal = Journal()
    for name in ("generator", "assistant", "reference"):
        journal.network(name, getattr(world, name))
    world.rewards = [journal.reward(reward(name, SLOPE)) for name in ("one", "two")]
    world.settings = replace(world.settings, reward_weight=1.0, divergence=Divergence(guidance=Guidance("inner", 1.0)))
    world.build().step()
    assert journal.lines == [
        *("generator", "assistant"),
        *("generator", "submit one", "submit two", "assistant", "reference", "reference", "await one", "await two"),
    ]


def test_the_assistant_is_updated_as_often_as_asked_each_time_on_fresh_samples(world):
    seen: list[tuple[Tensor, ...]] = []
    world.assistant.register_forward_hook(lambda _, args, __: seen.append(args))
    world.settings = replace(world.settings, assistant_updates=3)
    world.build().step()
    assert len(seen) == 4
    assert len({float(x_t.detach().sum()) for x_t, *_ in seen}) == 4
    assert len({tuple(t.tolist()) for _, t, _ in seen}) == 4


def test_timesteps_are_drawn_from_both_spans_with_their_ends(world):
    seen: list[Tensor] = []
    world.assistant.register_forward_hook(lambda _, args, __: seen.append(args[1]))
    world.settings = replace(
        world.settings, batch_size=256, assistant_timesteps=Timesteps(0, 2), generator_timesteps=Timesteps(4, 5)
    )
    world.build().step()
    assert [sorted(set(t.tolist())) for t in seen] == [[0, 1, 2], [4, 5]]


def test_the_assistant_learns_in_its_step_only_and_the_generator_in_its_own(world):
    changes = []
    networks = {"generator": world.generator, "assistant": world.assistant, "reference": world.reference}
    before = {name: weights(module) for name, module in networks.items()}

    class Watching(world.engine):
        def backward(self, loss: Tensor) -> None:
            super().backward(loss)
            touched = {name for name, m in networks.items() if any(reached(p) for p in m.parameters())}
            moved = {name for name, m in networks.items() if not same(weights(m), before[name])}
            changes.append((touched, moved))

    world.engine = Watching
    world.settings = replace(world.settings, divergence=Divergence(guidance=Guidance("outer", 1.0)))
    world.build().step()
    assert changes == [({"assistant"}, set()), ({"generator"}, {"assistant"})]
    assert same(weights(world.reference), before["reference"])
    assert all(parameter.requires_grad for parameter in world.assistant.parameters())
    assert not any(parameter.requires_grad for parameter in world.reference.parameters())


def test_the_generator_borrows_the_assistant_as_a_frozen_module_and_never_through_its_engine(world):
    # spec: any other way is silently wrong under some ZeRO stages
    trainable, called = [], []
    world.assistant.register_forward_hook(lambda *_: trainable.append(world.assistant.means.requires_grad))

    class Watching(world.engine):
        def __call__(self, *args) -> Tensor:
            called.append(self.module)
            return super().__call__(*args)

    world.engine = Watching
    world.build().step()
    assert trainable == [True, False]
    assert called == [world.assistant, world.generator]


def test_a_part_of_the_assistant_that_was_frozen_stays_frozen(world):
    world.assistant.factors.requires_grad_(False)
    world.build().step()
    assert world.assistant.means.requires_grad
    assert not world.assistant.factors.requires_grad


def test_at_the_reference_without_guidance_the_generator_stands_still(world):
    world.assistant_lr = 0.0
    start = weights(world.generator)
    metrics = world.build().step()
    assert metrics["divergence/y_norm"] == 0
    assert metrics["grad_norm/generator"] == 0
    assert same(weights(world.generator), start)


def test_the_reward_pushes_every_sample_along_its_weighted_gradient(world, reward):
    # assistant = reference, so the divergence is silent: d loss / d mean = -alpha_rew sum_k w_k h_k, exactly
    gradients = []
    world.assistant_lr = 0.0
    world.rewards = [reward("one", SLOPE, 0.5), reward("two", SLOPE.flip(0), 2.0), reward("held out", SLOPE * 9, 0.0)]
    world.settings = replace(world.settings, reward_weight=10.0)
    world.decoder.chunk = 5

    class Watching(world.engine):
        def step(self) -> float:
            gradients.append([parameter.grad.clone() for parameter in self.module.parameters()])
            return super().step()

    world.engine = Watching
    mean = world.generator.mean.detach().clone()
    metrics = world.build().step()
    torch.testing.assert_close(gradients[1][0], -10.0 * (0.5 * SLOPE + 2.0 * SLOPE.flip(0)))
    # the held-out reward is measured and nothing else; its mean over 32 samples of N(h.m, (0.8 |h|)^2)
    assert metrics["reward/held out"] == pytest.approx(9 * metrics["reward/one"], rel=1e-5)
    spread = 0.8 * float(SLOPE.norm()) / 32**0.5
    assert metrics["reward/one"] == pytest.approx(float(SLOPE @ mean), abs=4 * spread)


def test_rewards_are_measured_without_effect_at_reward_weight_zero(world, reward):
    world.assistant_lr = 0.0
    world.rewards = [reward("one", SLOPE)]
    start = weights(world.generator)
    metrics = world.build().step()
    assert "reward/one" in metrics
    assert same(weights(world.generator), start)


def test_guidance_conditions_the_reference_on_the_null_prompt_and_nothing_else(world):
    lengths: dict[str, list[float]] = {"assistant": [], "reference": []}
    for name, seen in lengths.items():
        getattr(world, name).register_forward_hook(
            lambda _, args, __, seen=seen: seen.append(float(args[2]["length"].mean()))
        )
    world.settings = replace(world.settings, divergence=Divergence(guidance=Guidance("inner", 2.0)))
    world.build().step()
    assert lengths == {"assistant": [1.0, 1.0], "reference": [1.0, 0.0]}


def test_the_warm_up_trains_the_assistant_alone(world, reward):
    world.rewards = [reward("one", SLOPE)]
    world.settings = replace(world.settings, warmup_images=64, reward_weight=1.0, world_size=2)
    trainer = world.build()
    start, assistant = weights(world.generator), weights(world.assistant)
    first = trainer.step()
    assert same(weights(world.generator), start)
    assert not same(weights(world.assistant), assistant)
    assert "grad_norm/generator" not in first
    assert trainer.images == first["images"] == 64
    second = trainer.step()
    assert second["grad_norm/generator"] > 0
    assert not same(weights(world.generator), start)


def test_the_average_of_the_generator_counts_images_of_all_ranks(world, reward):
    world.rewards = [reward("one", SLOPE)]
    world.settings = replace(world.settings, reward_weight=1.0, world_size=4, ema_half_life_images=128.0)
    trainer = world.build()
    start = world.generator.mean.detach().clone()
    trainer.step()
    torch.testing.assert_close(trainer.ema.fragments["mean"].values, (start + world.generator.mean.detach()) / 2)


@pytest.mark.parametrize("gradient", ["direct", "recomputed"])
def test_a_step_is_a_function_of_weights_prompts_and_random_state(world, reward, gradient):
    world.rewards = [reward("one", SLOPE)]
    world.settings = replace(
        world.settings, reward_weight=0.1, divergence=Divergence(guidance=Guidance("inner", 1.0), gradient=gradient)
    )
    twin = copy.deepcopy(world)
    first, second = world.build(), twin.build()
    for _ in range(3):
        assert without_times(first.step()) == without_times(second.step())
    assert same(weights(world.generator), weights(twin.generator))


def test_a_restored_trainer_goes_on_as_if_nothing_had_happened(world, reward):
    world.rewards = [reward("one", SLOPE)]
    world.settings = replace(world.settings, reward_weight=0.1, ema_half_life_images=100.0)
    twin = copy.deepcopy(world)
    trainer = world.build()
    trainer.step()
    states = copy.deepcopy([part.state_dict() for part in (trainer, trainer.generator, trainer.assistant)])
    wanted = [without_times(trainer.step()) for _ in range(2)]

    restored = twin.build()
    for part, state in zip((restored, restored.generator, restored.assistant), states, strict=True):
        part.load_state_dict(state)
    assert [without_times(restored.step()) for _ in range(2)] == wanted
    assert same(*([part.values for part in run.ema.fragments.values()] for run in (restored, trainer)))


def test_the_direct_and_the_recomputed_gradient_train_alike(world):
    twin = copy.deepcopy(world)
    for one, gradient in ((world, "direct"), (twin, "recomputed")):
        one.settings = replace(one.settings, divergence=Divergence(guidance=Guidance("inner", 1.0), gradient=gradient))
        one.generator.mean.data += 0.5
    first, second = world.build(), twin.build()
    for _ in range(3):
        one, two = first.step(), second.step()
        assert one["grad_norm/generator"] == pytest.approx(two["grad_norm/generator"], rel=1e-4)  # fp32
    assert one["grad_norm/generator"] > 0


STAGES = {"text", "assistant", "generator", "divergence", "decode", "reward_wait", "pull", "optimizer", "ema"}


def test_every_step_tells_where_its_time_went(world, reward):
    class Slow(Late):
        def result(self) -> tuple[Tensor, Tensor]:
            time.sleep(0.05)
            return super().result()

    term = reward("one", SLOPE)
    world.rewards = [replace(term, submit=lambda x, p: Slow(Journal(), "one", term.submit(x, p)))]
    world.settings = replace(world.settings, reward_weight=1.0)
    metrics = world.build().step()
    seconds = {name.removeprefix("seconds/"): value for name, value in metrics.items() if name.startswith("seconds/")}
    whole = seconds.pop("step")
    assert seconds.keys() == STAGES
    assert 0.05 <= seconds["reward_wait"] < 0.1
    assert 0.9 * whole < sum(seconds.values()) <= whole, "stages do not overlap, and leave nothing large out"


class BrokenRows(nn.Module):
    """Spoils given rows of another network's output."""

    def __init__(self, inner: nn.Module, rows: list[int], value: float) -> None:
        super().__init__()
        self.inner, self.rows, self.value = inner, rows, value

    def forward(self, *args) -> Tensor:
        output = self.inner(*args)
        spoiled = torch.zeros(len(output), dtype=torch.bool)
        spoiled[self.rows] = True
        return torch.where(spoiled.view(-1, 1, 1, 1), torch.full_like(output, self.value), output)


class Done:
    def __init__(self, scored: tuple[Tensor, Tensor]) -> None:
        self.scored = scored

    def result(self) -> tuple[Tensor, Tensor]:
        return self.scored


def broken_reward(term: RewardTerm, row: int, where: int) -> RewardTerm:
    """Return the reward with row `row` of its score (where = 0) or of its gradient (where = 1) not a number."""

    def submit(images: Tensor, prompts: Sequence[str]) -> PendingReward:
        parts = [part.clone() for part in term.submit(images, prompts).result()]
        parts[where][row] = torch.nan
        return Done((parts[0], parts[1]))

    return replace(term, submit=submit)


@pytest.mark.parametrize("culprit", ["generator", "assistant", "reference", "score", "gradient"])
def test_a_sample_that_is_not_finite_is_dropped_and_counted_and_the_others_go_on(world, reward, culprit):
    # the divergence is silent and every sample pulls the mean by -h, so the mean's gradient counts the kept samples
    gradients = []

    class Watching(world.engine):
        def step(self) -> float:
            gradients.append(next(self.module.parameters()).grad.clone())
            return super().step()

    world.engine, world.assistant_lr = Watching, 0.0
    world.rewards = [reward("one", SLOPE)]
    world.settings = replace(world.settings, batch_size=8, reward_weight=1.0)
    if culprit in ("score", "gradient"):
        world.rewards = [broken_reward(world.rewards[0], 3, ("score", "gradient").index(culprit))]
    else:
        value = torch.inf if culprit == "assistant" else torch.nan
        setattr(world, culprit, BrokenRows(getattr(world, culprit), [3], value))
    metrics = world.build().step()
    assert metrics["nonfinite/generator"] == 1
    assert metrics["nonfinite/assistant"] == (1 if culprit in ("generator", "assistant") else 0)
    assert torch.tensor(list(metrics.values())).isfinite().all()
    torch.testing.assert_close(gradients[1], -SLOPE * 7 / 8)


def test_a_batch_without_a_finite_sample_moves_nothing(world):
    world.generator = BrokenRows(world.generator, list(range(32)), torch.nan)
    start = [*weights(world.generator), *weights(world.assistant)]
    metrics = world.build().step()
    assert metrics["nonfinite/generator"] == metrics["nonfinite/assistant"] == 32
    assert same([*weights(world.generator), *weights(world.assistant)], start)


def test_a_broken_measurement_of_weight_zero_drops_nothing(world, reward):
    world.rewards = [broken_reward(reward("held out", SLOPE, 0.0), 3, 0), reward("one", SLOPE)]
    world.settings = replace(world.settings, reward_weight=1.0)
    metrics = world.build().step()
    assert metrics["nonfinite/generator"] == 0
    assert torch.tensor(metrics["reward/held out"]).isfinite()


def test_a_gradient_norm_that_is_not_finite_stops_the_run(world):
    class Overflowing(world.engine):
        def step(self) -> float:
            return super().step() * float("nan")

    world.engine = Overflowing
    with pytest.raises(FloatingPointError, match="norm of the assistant is nan after 0 images: resume with"):
        world.build().step()


def test_a_failed_reward_is_raised_and_leaves_the_networks_trainable(world, reward):
    class Failed:
        def result(self) -> tuple[Tensor, Tensor]:
            raise TimeoutError("reward one did not answer")

    world.rewards = [replace(reward("one", SLOPE), submit=lambda images, prompts: Failed())]
    start = weights(world.generator)
    with pytest.raises(TimeoutError, match="reward one"):
        world.build().step()
    assert same(weights(world.generator), start)
    assert all(parameter.requires_grad for parameter in world.assistant.parameters())


@pytest.mark.parametrize("span", [Timesteps(0, 6), Timesteps(-1, 3), Timesteps(4, 3)])
@pytest.mark.parametrize("name", ["generator_timesteps", "assistant_timesteps"])
def test_timesteps_outside_the_schedule_are_refused_by_name(world, name, span):
    world.settings = replace(world.settings, **{name: span})
    with pytest.raises(ValueError, match=rf"{name} is {span.low}\.\.{span.high}, must lie in 0\.\.5"):
        world.build()


def test_kl_needs_no_gradient_through_any_network(world):
    enabled = []
    for module in (world.assistant, world.reference):
        module.register_forward_hook(lambda *_: enabled.append(torch.is_grad_enabled()))
    world.settings = replace(world.settings, divergence=Divergence(IntegralKL(), Guidance("inner", 1.0)))
    world.build().step()
    assert enabled == [
        True,
        False,
        False,
        False,
    ]  # the assistant's own training, then the three of the generator's step
