import math

import pytest
import torch

from slingstone.preferences.losses import davidson, logistic, soft_cross_entropy

SCORES = torch.tensor([[1.0, -2.0, 0.5], [0.0, 1.0, 0.5]], dtype=torch.float64)
LABELS = torch.tensor([[1.0, 1.0, 0.5], [0.0, 0.0, 0.5]], dtype=torch.float64)
NO_TIES = torch.tensor(-50.0, dtype=torch.float64)


def test_the_soft_loss_is_the_entropy_of_the_better_ones_chance_and_log_two_for_an_equal_tie() -> None:
    chances = [1 / (1 + math.exp(-1)), 1 / (1 + math.exp(3)), 0.5]
    expected = torch.tensor([-math.log(chance) for chance in chances], dtype=torch.float64)
    torch.testing.assert_close(soft_cross_entropy(SCORES, LABELS, NO_TIES), expected)


def test_the_logistic_loss_is_the_same_without_the_tie() -> None:
    expected = soft_cross_entropy(SCORES, LABELS, NO_TIES) * torch.tensor([1.0, 1.0, 0.0])
    torch.testing.assert_close(logistic(SCORES, LABELS, NO_TIES), expected)


def test_davidsons_loss_is_the_soft_one_of_decided_votes_where_ties_have_no_odds() -> None:
    torch.testing.assert_close(davidson(SCORES, LABELS, NO_TIES)[:2], soft_cross_entropy(SCORES, LABELS, NO_TIES)[:2])


def test_davidsons_odds_of_a_tie_are_those_of_his_formula() -> None:
    nu, (first, second) = 0.7, SCORES[:, 0].exp().tolist()
    log_ties = torch.tensor(nu, dtype=torch.float64).log()
    tie = torch.full((2, 3), 0.5, dtype=torch.float64)
    expected = -math.log(nu * math.sqrt(first * second) / (first + second + nu * math.sqrt(first * second)))
    assert davidson(SCORES, tie, log_ties)[0].item() == pytest.approx(expected)


def test_every_head_is_judged_alone() -> None:
    heads = torch.stack([SCORES, 2 * SCORES])
    for loss in (soft_cross_entropy, logistic, davidson):
        together = loss(heads, LABELS, NO_TIES)
        torch.testing.assert_close(together, torch.stack([loss(head, LABELS, NO_TIES) for head in heads]))
