from pathlib import Path

import pytest

from slingstone.preferences.census import Census
from slingstone.preferences.splits import held_out, split
from slingstone.preferences.table import Picture, Preference
from tests.preferences.votes import picture, votes

RED, BLUE = Picture(data=picture((255, 0, 0))), Picture(data=picture((0, 0, 255)))


def said(number: int, voter: str, choice: str, swapped: bool = False) -> Preference:
    first, second = (BLUE, RED) if swapped else (RED, BLUE)
    fields = {"vote_id": str(number), "voter": voter, "choice": choice, "prompt": "a circle"}
    return Preference.model_validate(fields | {"first": first, "second": second, "shown_left": "first"})


def test_duplicates_and_contradictions_are_found_whichever_picture_comes_first() -> None:
    census = Census.of(
        [
            said(1, "ann", "first"),
            said(2, "ann", "second", swapped=True),  # red again: a duplicate
            said(3, "ann", "second"),  # blue: contradicts herself
            said(4, "bob", "first"),
            said(4, "eve", "first"),  # an id that was there
        ]
    )
    assert (census.duplicates, census.contradictions, census.repeated_ids, census.disputed) == (1, 1, 1, 1)


def test_agreement_counts_pairs_of_voters_who_both_chose() -> None:
    voters = [said(1, "a", "first"), said(2, "b", "first"), said(3, "c", "second"), said(4, "d", "tie")]
    assert Census.of(voters).agreement == pytest.approx(1 / 3)
    assert Census.of(voters[:1]).agreement is None


def test_a_bias_for_the_left_is_shown() -> None:
    census = Census.of([said(number, str(number), "first" if number else "second") for number in range(4)])
    assert census.table()["chose the left one"] == "75.0% of 4"


@pytest.mark.parametrize(
    ("given", "told"), [([], "holds no votes"), (list(votes(3, choice="first")), "all 3 votes are 'first'")]
)
def test_votes_of_which_nothing_can_be_learnt_are_refused_in_a_sentence(given: list[Preference], told: str) -> None:
    with pytest.raises(ValueError, match=rf"votes\.parquet: {told}"):
        Census.of(given).refuse_useless("votes.parquet")


def test_a_prompt_is_on_one_side_whatever_its_case_and_the_file_it_stands_in(tmp_path: Path) -> None:
    prompts = [f"prompt {number}" for number in range(4000)]
    sides = [held_out(prompt, 0.2) for prompt in prompts]
    assert sum(sides) / len(sides) == pytest.approx(0.2, abs=0.025)  # four standard errors
    assert sides == [held_out(f"  {prompt.upper()}\n", 0.2) for prompt in prompts]
    assert sides != [held_out(prompt, 0.2, seed=1) for prompt in prompts]
    with pytest.raises(ValueError, match=r"share = 0\.0: leaves no votes to test"):
        split(votes(8), tmp_path, 0.0)
    assert list(tmp_path.iterdir()) == []
