"""The benchmark: its arithmetic, that both sides compute the same, and the whole of it at micro size."""

import json

import pytest
import torch

from slingstone.worker.assembly import assemble
from slingstone.worker.assignment import Assignment
from workbench.benchmark.plain_loop import PlainLoop
from workbench.benchmark.platform_cost import LATENCY_S, alone, bench
from workbench.benchmark.statistics import ARMS, Block, hidden_share, spread, summarise, table, tax

MACHINE = (1.0, 3.0, 1.5, 1.0)
"""How much slower the machine is in each round."""


def blocks(**seconds: float) -> dict[str, list[Block]]:
    """Rounds on a machine whose speed drifts; every arm has the same true cost in each."""
    cost = dict.fromkeys(ARMS, 2.0) | seconds
    return {arm: [Block(cost[arm] * slow, 0.4, 0.01) for slow in MACHINE] for arm in ARMS}


def test_the_spread_is_the_median_and_the_quartiles():
    found = spread([4.0, 1.0, 2.0, 3.0, 100.0])
    assert (found.low, found.median, found.high) == (2.0, 3.0, 4.0)


def test_the_tax_does_not_notice_a_machine_that_slows_down_in_between():
    found = tax(blocks(job=2.1), "job")
    assert (found.low, found.median, found.high) == pytest.approx((1.05, 1.05, 1.05))


@pytest.mark.parametrize(("late", "share"), [(2.0, 1.0), (2.15, 0.0), (2.03, 0.8)])
def test_the_hidden_share_is_the_part_of_the_latency_that_a_step_does_not_notice(late, share):
    found = hidden_share({arm: found[:1] * 2 for arm, found in blocks(one_reward_late=late).items()}, 0.15)
    assert found.median == pytest.approx(share)


def test_the_table_says_what_was_wanted_and_whether_it_was_reached():
    good = table(summarise(blocks(job=2.1, one_reward_late=2.01), 0.15))
    assert "platform tax      1.050  [1.050 .. 1.050]   wanted <= 1.10: reached" in good
    assert "wanted >= 80%: reached" in good
    assert "cannot hide" not in good
    assert "quiet machine" not in good
    bad = table(summarise(blocks(job=2.4, one_reward_late=2.14), 0.15))
    assert "1.200  [1.200 .. 1.200]   wanted <= 1.10: missed" in bad
    assert "wanted >= 80%: missed" in bad
    assert "cannot hide 500 ms: take a larger batch" in table(summarise(blocks(), 0.5)), "only 400 ms are covered"


def test_the_table_warns_of_a_noisy_machine():
    noisy = blocks() | {"one_reward_late": [Block(seconds) for seconds in (1.9, 6.1, 2.9, 2.2)]}
    assert "measure on a quiet machine" in table(summarise(noisy, 0.15))


def test_the_plain_loop_computes_what_the_job_computes(micro, tmp_path):
    # Smooth: rounding to 8 bits would turn a last digit of a pixel into a step of the score.
    smooth = [f"rewards.services.{name}.preprocess=smooth" for name in ("pickscore", "hps")]
    run = micro(
        *smooth,
        *("runtime.engine=torch", "rewards.backend=in_process", "training.warmup_images=0"),
        *("objective.guidance.scale=1.5", "rewards.services.hps.weight=0.5", "training.assistant_updates=2"),
    )
    trainer = assemble(Assignment(run, str(tmp_path), "", "", None), 0, 1, torch.device("cpu")).trainer
    plain = PlainLoop(run)
    for _ in range(3):
        expected, found = trainer.step(), plain.step()
        assert {"loss/assistant", "loss/divergence", "reward/hps", "grad_norm/generator"} <= set(found)
        # The rewards' gradients are added before the decoder here and after it there: roundings, grown by 3 steps.
        assert found == pytest.approx({name: expected[name] for name in found}, rel=1e-4)


def test_one_worker_of_the_run_is_measured_and_one_of_its_rewards_is_late(micro):
    run, plan = alone(micro("runtime.num_workers=2", "rewards.services.pickscore.max_batch_images=1"), 3, 5)
    assert (run.runtime.num_workers, run.training.batch_size, run.training.warmup_images) == (1, 4, 0)
    assert [(entry.name, entry.weight) for entry in run.rewards.services] == [
        ("pickscore", 1.0),
        ("pickscore-late", 0.0),
    ]
    late = run.rewards.services[-1]
    assert late.name == plan.late
    model, latency_s, checkpoint = late.checkpoint.split(" ", 2)
    assert (model, checkpoint) == ("pickscore", run.rewards.services[0].checkpoint)
    assert float(latency_s) == pytest.approx(LATENCY_S / 4), "a batch of 4 is computed in 4 passes"
    assert (plan.rounds, plan.steps) == (3, 5)


@pytest.mark.parametrize(
    ("override", "rounds", "message"),
    [
        ("seed=0", 1, "at least 2 rounds"),
        ("objective.reward_weight=0", 2, "trained on a reward"),
        ("runtime.precision=bf16", 2, "the plain loop is fp32"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_starts(micro, tmp_path, override, rounds, message):
    with pytest.raises(ValueError, match=message):
        bench(micro(override), rounds, 1, print)
    assert not (tmp_path / "bench").exists()


@pytest.mark.ray
@pytest.mark.slow
def test_the_whole_benchmark_gives_plausible_numbers(cluster, micro, tmp_path):
    said: list[str] = []
    summary = bench(micro(), rounds=2, steps=2, say=said.append)
    assert json.loads((tmp_path / "bench" / "summary.json").read_text()) == summary
    assert set(summary["seconds_per_step"]) == set(ARMS)
    assert all(len(found) == 2 for found in summary["blocks"].values()), "the first round warms up"
    assert all(found["low"] > 0 for found in summary["seconds_per_step"].values())
    assert summary["platform_tax"]["median"] > 0
    # Score networks of a few milliseconds hide next to nothing of 150; the rest must show as waiting.
    assert summary["hidden_share"]["median"] <= 1
    assert summary["waited_s"]["one_reward_late"] > 0.5 * LATENCY_S
    assert summary["waited_s"]["one_reward_late"] + summary["covered_s"]["one_reward_late"] > LATENCY_S
    assert "cannot hide 150 ms" in "\n".join(said)
    assert [line for line in said if line.startswith("round")] == ["round 1 of 2", "round 2 of 2"]
