from datetime import UTC, datetime

import pytest

from slingstone.arena.results import results
from slingstone.arena.store import Drawing


def vote(first, second, choice, voter="ann", left="first", prompt="p"):
    sides = {side: Drawing(f"{prompt}{model}", prompt, model) for side, model in (("first", first), ("second", second))}
    time = datetime(2026, 1, 2, tzinfo=UTC)
    return sides | {"vote": "v", "choice": choice, "voter": voter, "shown_left": left, "seconds": 1.0, "time": time}


def test_of_no_votes_all_are_equal_and_unsure():
    found = results([], ["a", "b"])
    assert found["votes"] == 0
    assert [row["rating"] for row in found["generators"]] == [1000, 1000]
    assert found["position"] == {"value": 0.5, "low": 0, "high": 1}
    assert results([], [])["generators"] == []


def test_the_preferred_one_leads_and_the_matrix_tells_by_whom():
    votes = [vote("a", "b", "first", prompt=f"p{number}") for number in range(8)]
    votes += [vote("b", "a", "first", prompt="q"), vote("a", "b", "tie", prompt="r"), vote("a", "b", "both_bad")]
    found = results(votes, ["b", "a"])
    leader, last = found["generators"]
    assert (leader["name"], leader["wins"], leader["losses"], leader["ties"]) == ("a", 8, 1, 2)
    assert leader["low"] < leader["rating"] < leader["high"]
    assert leader["rating"] + last["rating"] == pytest.approx(2000, abs=0.2)
    assert found["matrix"] == {
        "names": ["b", "a"],
        "share": [[None, 0.1818], [0.8182, None]],
        "votes": [[0, 11], [11, 0]],
    }
    assert found["choices"] == {"first": 9, "tie": 1, "both_bad": 1}
    assert found["latest"][0]["choice"] == "both_bad"


def test_a_voter_who_always_takes_the_left_one_shows_as_position_bias():
    votes = [vote("a", "b", side, left=side, prompt=str(n)) for n in range(30) for side in ("first", "second")]
    assert results(votes, ["a", "b"])["position"]["low"] > 0.9


def test_a_voter_who_throws_a_coin_is_named_and_those_who_agree_are_not():
    votes = []
    for number in range(40):
        for voter in ("ann", "ben", "cid"):
            votes.append(vote("a", "b", "first", voter, prompt=str(number)))
        votes.append(vote("a", "b", "first" if number % 2 else "second", "coin", prompt=str(number)))
    agreement = results(votes, ["a", "b"])["agreement"]
    assert {row["voter"]: row["at_chance"] for row in agreement["voters"]} == {
        "ann": False,
        "ben": False,
        "cid": False,
        "coin": True,
    }
    assert agreement["between_voters"]["value"] == 0.75


def test_a_pair_that_one_sees_again_measures_oneself():
    votes = [vote("a", "b", "first"), vote("b", "a", "second"), vote("a", "b", "second")]
    assert results(votes, ["a", "b"])["agreement"]["with_themselves"]["value"] == pytest.approx(1 / 3, abs=1e-3)
