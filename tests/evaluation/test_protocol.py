"""Evaluations by a fake sampler, whose pictures are known functions of prompt and seed."""

import json
import math
import random
import statistics
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from slingstone.evaluation.protocol import Evaluation, evaluate, merge, picture_seed
from slingstone.networks.sampling import Pictures

PROMPTS = [f"prompt {i}" for i in range(7)]


def noise_sampler(prompts: Sequence[str], seeds: Sequence[int]) -> Pictures:
    """Pictures that are the noise of their seed: 20 ms and two evaluations a picture."""
    images = [torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return Pictures(torch.stack(images), 0.02 * len(prompts), 2)


def rewards(images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
    return {"brightness": images.mean((1, 2, 3))}


def oracle(images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
    """Utility is the red channel; only even prompts are asked about parity."""
    parity = [float(prompt[-1]) if int(prompt[-1]) % 2 == 0 else math.nan for prompt in prompts]
    return {"utility": images[:, 0].mean((1, 2)), "parity": torch.tensor(parity)}


def run(prompts: Sequence[str] = PROMPTS, **settings) -> Evaluation:
    settings = {"images_per_prompt": 3, "seed": 5, "batch_size": 6} | settings
    return evaluate(noise_sampler, prompts, rewards=rewards, oracle=oracle, **settings)


def test_the_means_are_those_of_the_pictures_that_the_seeds_give() -> None:
    summary = run().summary()
    seeds = [picture_seed(prompt, replica, 5) for prompt in PROMPTS for replica in range(3)]
    images = noise_sampler(["-"] * 21, seeds).images
    assert summary["rewards"]["brightness"] == pytest.approx(float(images.mean()), abs=1e-6)
    assert summary["utility"] == pytest.approx(float(images[:, 0].mean()), abs=1e-6)
    assert summary["seconds_per_image"] == pytest.approx(0.02)
    assert summary["network_evaluations"] == 2
    assert (summary["pictures"], summary["prompts"]) == (21, 7)


def test_diversity_is_the_mean_over_all_pairs_of_pictures_of_a_prompt() -> None:
    distances = []
    for prompt in PROMPTS:
        images = noise_sampler([prompt] * 3, [picture_seed(prompt, replica, 5) for replica in range(3)]).images
        distances += [float((images[i] - images[j]).square().mean().sqrt()) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert run(diversity="pixel_rms").summary()["diversity"] == pytest.approx(statistics.mean(distances), abs=1e-6)


def test_the_standard_error_takes_prompts_for_the_independent_draws() -> None:
    evaluation = run()
    means = [
        statistics.mean(row.values["rewards/brightness"] or 0 for row in evaluation.rows if row.prompt == prompt)
        for prompt in PROMPTS
    ]
    assert evaluation.metrics["rewards/brightness"].standard_error == pytest.approx(statistics.stdev(means) / 7**0.5)


def test_a_question_that_does_not_apply_is_left_out_of_the_mean() -> None:
    assert run().metrics["parity"].mean == pytest.approx((0 + 2 + 4 + 6) / 4)
    assert run(["prompt 1"]).metrics["parity"].mean is None


@pytest.mark.parametrize("world", [2, 3, 5])
def test_merged_shards_equal_one_process_to_the_digit(world: int) -> None:
    shards = [run(shard=(rank, world)) for rank in range(world)]
    random.Random(0).shuffle(shards)
    assert merge(shards) == run()
    assert merge(shards).summary() == run().summary()


def test_neither_order_nor_repetition_of_the_prompts_matters() -> None:
    assert run([*reversed(PROMPTS), PROMPTS[0]]) == run()


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_another_batch_size_makes_the_same_pictures(batch_size: int) -> None:
    mine, other = run(), run(batch_size=batch_size)
    assert [row.seed for row in mine.rows] == [row.seed for row in other.rows]
    for name, metric in mine.metrics.items():
        assert other.metrics[name].mean == pytest.approx(metric.mean, rel=1e-6)


def test_an_evaluation_survives_json() -> None:
    assert Evaluation.from_dict(json.loads(json.dumps(run().to_dict()))) == run()


def test_a_missing_repeated_or_foreign_shard_is_refused() -> None:
    first, second = (run(shard=(rank, 2)) for rank in range(2))
    with pytest.raises(ValueError, match="where the evaluation has 21"):
        merge([first])
    with pytest.raises(ValueError, match="where the evaluation has 21"):
        merge([first, second, second])
    with pytest.raises(ValueError, match="not of one evaluation"):
        merge([first, run(PROMPTS[:3])])


def test_a_failed_reward_is_never_a_number() -> None:
    with pytest.raises(RuntimeError, match=r"reward broken gave \[nan"):
        evaluate(noise_sampler, PROMPTS, rewards=lambda images, prompts: {"broken": images.mean((1, 2, 3)) / 0 * 0})


@pytest.mark.parametrize(
    "wrong", [{"images_per_prompt": 0}, {"batch_size": 0}, {"shard": (2, 2)}, {"diversity": "vibes"}, {"prompts": []}]
)
def test_an_impossible_evaluation_is_refused_before_anything_is_sampled(wrong: dict) -> None:
    def untouched(prompts: Sequence[str], seeds: Sequence[int]) -> Pictures:
        raise AssertionError("sampled")

    settings = {"prompts": PROMPTS, "images_per_prompt": 2} | wrong
    with pytest.raises(ValueError, match=r"must be"):
        evaluate(untouched, **settings)


def test_every_picture_is_seen_once_and_the_clock_starts_after_a_single_one() -> None:
    seen: list[Tensor] = []
    calls = []

    def sampler(prompts: Sequence[str], seeds: Sequence[int]) -> Pictures:
        calls.append(len(prompts))
        pictures = noise_sampler(prompts, seeds)
        return pictures if len(calls) > 1 else Pictures(pictures.images, 1e6, 2)

    evaluation = evaluate(sampler, PROMPTS, images_per_prompt=3, batch_size=6, see=seen.append)
    assert sum(map(len, seen)) == 21
    assert calls == [1, 6, 6, 6, 3]
    assert evaluation.metrics["seconds_per_image"].mean == pytest.approx(0.02)
