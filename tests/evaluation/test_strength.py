import numpy as np
import pytest

from slingstone.evaluation.strength import Duel, counted, fit, rate, share, win_share

MODELS = ["weak", "middle", "strong"]


def votes(log, ties, count, voters=20, prompts=40, seed=0):
    """Votes drawn from the model itself, on random pairs."""
    draw = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        one, two = draw.choice(len(log), 2, replace=False)
        weights = np.array([np.exp(log[one]), np.exp(log[two]), ties * np.exp((log[one] + log[two]) / 2)])
        winner = ("first", "second", "neither")[draw.choice(3, p=weights / weights.sum())]
        voter, prompt = f"voter {draw.integers(voters)}", f"prompt {draw.integers(prompts)}"
        made.append(Duel(MODELS[one], MODELS[two], winner, voter, prompt))
    return made


def test_of_two_models_without_ties_the_strengths_are_the_log_odds():
    found = fit(np.array([[0.0, 300], [100, 0]]), np.zeros((2, 2)))
    assert found.log[0] - found.log[1] == pytest.approx(np.log(3), abs=0.002)  # the prior pulls by 1e-4 of a vote
    assert found.log.sum() == pytest.approx(0)
    assert found.ties < 0.01


def test_of_equals_the_share_of_ties_is_davidsons():
    found = fit(np.array([[0.0, 100], [100, 0]]), np.array([[0.0, 200], [200, 0]]))
    assert found.ties == pytest.approx(2, rel=1e-3)  # ties / (ties + 2) = a half
    assert found.log == pytest.approx([0, 0], abs=1e-6)


def test_the_truth_is_found_again_with_its_ties():
    log = np.array([-0.8, 0.0, 0.8])
    found = fit(*counted(votes(log, ties=0.7, count=20_000), MODELS))
    assert found.log == pytest.approx(log, abs=0.05)
    assert found.ties == pytest.approx(0.7, abs=0.05)


def test_a_model_that_never_lost_has_a_finite_strength():
    found = fit(np.array([[0.0, 5], [0, 0]]), np.zeros((2, 2)))
    assert 2 < found.log[0] - found.log[1] < 20


def test_intervals_hold_the_truth_where_votes_are_independent():
    log, held = np.array([-0.5, 0.0, 0.5]), 0
    for seed in range(8):
        found = rate(votes(log, 0.5, 150, voters=150, prompts=150, seed=seed), MODELS, seed)
        held += found["strong"].low <= 0.5 <= found["strong"].high
    assert held >= 7


def test_votes_of_one_prompt_count_as_one_sample():
    def width(prompts):
        won = [index % prompts < prompts * 3 // 4 for index in range(400)]
        duels = [
            Duel("a", "b", "first" if win else "second", f"voter {index}", f"prompt {index % prompts}")
            for index, win in enumerate(won)
        ]
        found = win_share(duels, "a", "b")
        assert found is not None
        assert found.value == 0.75
        return found.high - found.low

    assert width(prompts=8) > 3 * width(prompts=400)


def test_sides_do_not_matter_to_a_win_share():
    duels = [Duel("a", "b", "first", "v", "p"), Duel("b", "a", "second", "v", "q"), Duel("a", "b", "neither", "v", "r")]
    assert win_share(duels, "a", "b").value == pytest.approx(5 / 6)
    assert win_share(duels, "b", "a").value == pytest.approx(1 / 6)
    assert win_share(duels, "a", "c") is None


def test_a_share_has_wilsons_interval():
    # Newcombe 1998, table I: 81 of 263.
    assert share(81, 263) == pytest.approx((0.308, 0.2553, 0.3662), abs=5e-4)
    assert share(0, 0) == (0.5, 0, 1)
