from itertools import islice

import pytest

from slingstone.prompts.sampler import PromptSampler

PROMPTS = tuple(f"prompt {i}" for i in range(10))


def global_batches(world: int, count: int, batch: int = 4) -> list[list[str]]:
    samplers = [PromptSampler(PROMPTS, batch, rank, world, seed=3) for rank in range(world)]
    return [[prompt for sampler in samplers for prompt in next(sampler)] for _ in range(count)]


def test_every_epoch_is_a_permutation_and_no_two_are_the_same() -> None:
    drawn = [prompt for batch in islice(PromptSampler(PROMPTS, 4, seed=1), 10) for prompt in batch]
    epochs = [drawn[i : i + 10] for i in range(0, 40, 10)]
    assert all(sorted(epoch) == sorted(PROMPTS) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_a_batch_larger_than_the_set_runs_over_several_epochs() -> None:
    batch = next(PromptSampler(PROMPTS, 25))
    assert sorted(batch[:10]) == sorted(batch[10:20]) == sorted(PROMPTS)


@pytest.mark.parametrize("world", [2, 4])
def test_the_union_over_ranks_does_not_depend_on_their_number(world: int) -> None:
    assert global_batches(world, 8) == global_batches(1, 8)


def test_the_seed_decides_the_order() -> None:
    first, again, other = (next(PromptSampler(PROMPTS, 10, seed=seed)) for seed in (0, 0, 1))
    assert first == again != other


def test_a_loaded_position_continues_the_same_order_on_any_number_of_ranks() -> None:
    whole = global_batches(1, 9)
    sampler = PromptSampler(PROMPTS, 4, seed=3)
    for _ in range(5):
        next(sampler)
    halves = [PromptSampler(PROMPTS, 4, rank, 2, seed=3) for rank in range(2)]
    for half in halves:
        half.load_state_dict(sampler.state_dict())
    assert [next(halves[0]) + next(halves[1]) for _ in range(4)] == whole[5:]


def test_a_position_among_other_prompts_or_seeds_is_refused() -> None:
    state = PromptSampler(PROMPTS, 4, seed=3).state_dict()
    with pytest.raises(ValueError, match="other prompts"):
        PromptSampler(PROMPTS[:-1], 4, seed=3).load_state_dict(state)
    with pytest.raises(ValueError, match="belongs to 3"):
        PromptSampler(PROMPTS, 4, seed=4).load_state_dict(state)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(((), 4), "empty"), ((PROMPTS, 3, 0, 2), "batch is 3"), ((PROMPTS, 4, 2, 2), "rank is 2")],
)
def test_impossible_samplers_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PromptSampler(*arguments)
