import pytest
import torch

from slingstone.preferences.census import Census
from workbench.recipe.preferences import JUDGE, drawn_candidates
from workbench.recipe.votes import all_votes, simulated_votes, utility_foretells


@pytest.fixture(scope="module")
def candidates():
    return drawn_candidates(40, 4, seed=0)


def test_candidates_are_reproducible(candidates):
    again = drawn_candidates(40, 4, seed=0)
    assert torch.equal(again.pictures, candidates.pictures)
    assert again.captions == candidates.captions


def test_pictures_of_the_caption_are_worth_more_than_those_of_another_scene(candidates):
    true, false = candidates.utility[:, [0, 2]], candidates.utility[:, [1, 3]]
    assert true.mean() > false.mean() + 0.1


def test_choices_follow_bradley_terry(candidates):
    votes = [vote for seed in range(8) for vote in all_votes(candidates, seed)]
    first = {"first": 1.0, "second": 0.0}
    slots = [int(place) for vote in votes for place in vote.vote_id.split("-")[2:]]
    rows, left, right = torch.tensor(slots).view(-1, 3).T
    gap = candidates.utility[rows, left] - candidates.utility[rows, right]
    choice = torch.tensor([first[vote.choice] for vote in votes])
    for low in (-0.3, -0.1, 0.0, 0.1):
        near = (gap >= low) & (gap < low + 0.1)
        chance = torch.sigmoid(JUDGE * gap[near]).mean()
        error = 4 * 0.5 / near.sum().sqrt()  # four standard errors
        assert (choice[near].mean() - chance).abs() < error


def test_simulated_voters_tie_where_they_see_no_difference_and_one_in_ten_chooses_at_random(candidates):
    votes = list(simulated_votes(candidates, ["drawing"] * 4, pairs=600, voters=20, seed=0, votes_per_pair=3))
    assert len(votes) == 1800
    assert {"first", "second", "tie"} <= {vote.choice for vote in votes}
    census = Census.of(votes)
    assert 0.55 < (census.agreement or 0) < 0.95
    assert utility_foretells(candidates, votes) > (census.agreement or 1), "nobody foretells votes better than utility"
    random_voters = [vote for vote in votes if vote.voter in ("voter-9", "voter-19")]
    assert utility_foretells(candidates, random_voters) < 0.65
