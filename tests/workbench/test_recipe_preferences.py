import pytest
import torch

from workbench.recipe.preferences import JUDGE, drawn_candidates, preference_loss


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


def test_choices_follow_bradley_terry():
    """At scores equal to the judge's own logits the loss is the entropy of its choices: no scores do better."""
    utility = torch.tensor([[0.2, 0.3]]).repeat(20_000, 1)
    chance = torch.sigmoid(torch.tensor(-0.1 * JUDGE))
    entropy = -(chance * chance.log() + (1 - chance) * (1 - chance).log())

    def loss(scale):
        return preference_loss(scale * utility, utility, torch.Generator().manual_seed(0)).item()

    assert loss(JUDGE) == pytest.approx(entropy.item(), abs=0.01)  # 3 standard errors
    assert loss(JUDGE) < min(loss(0.5 * JUDGE), loss(2 * JUDGE))
