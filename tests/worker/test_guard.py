"""Decisions of the guard, from numbers to action."""

import pytest

from slingstone.config import Guard
from slingstone.worker.guard import Finding, decide

INIT = Finding(0, {"held": -1.0, "diversity": 0.2, "utility": 0.5})


def guard(*rules: dict, **changes) -> Guard:
    return Guard.model_validate({"rules": rules, **changes})


def seen(images: int, **values: float) -> Finding:
    return Finding(images, {**INIT.values, **values})


def test_bounds_are_multiples_of_init_differences_from_it_or_values():
    rules = guard(
        {"metric": "diversity", "below": 0.5, "above": 2},
        {"metric": "held", "below": -0.5, "relative": "difference"},
        {"metric": "utility", "below": 0.4, "relative": "absolute"},
    )
    for values, broken in (
        ({"diversity": 0.11, "held": -1.4, "utility": 0.41}, []),
        ({"diversity": 0.09}, ["diversity"]),
        ({"diversity": 0.41}, ["diversity"]),
        ({"held": -1.6, "utility": 0.39}, ["held", "utility"]),
    ):
        decision = decide(rules, [INIT, seen(10, **values)])
        assert [breach.rule.metric for breach in decision.breaches] == broken
        assert decision.action == ("warn" if broken else "go_on")


def test_a_rule_acts_only_when_broken_as_often_in_a_row_as_its_patience():
    patient = guard({"metric": "diversity", "below": 0.5, "patience": 2, "action": "stop"})
    low, fine = {"diversity": 0.05}, {"diversity": 0.2}
    history = [INIT, seen(10, **low), seen(20, **fine), seen(30, **low)]
    assert not decide(patient, history[:2]).ends
    assert not decide(patient, history).ends, "not in a row"
    decision = decide(patient, [*history, seen(40, **low)])
    assert decision.action == "stop"
    assert "diversity 0.05 is below 0.1 (init 0.2) for 2 evaluations" in str(decision)


def test_the_gravest_action_of_all_broken_rules_is_taken():
    rules = guard(
        {"metric": "diversity", "below": 0.5, "action": "stop"},
        {"metric": "utility", "below": 0.5, "action": "warn"},
    )
    assert decide(rules, [INIT, seen(10, utility=0.1)]).action == "warn"
    assert decide(rules, [INIT, seen(10, utility=0.1, diversity=0.01)]).action == "stop"


@pytest.mark.parametrize(("mode", "best"), [("max", 20), ("min", 0)])
def test_roll_back_returns_to_the_best_evaluation_that_broke_no_rule(mode, best):
    rules = guard(
        {"metric": "diversity", "below": 0.5, "action": "roll_back"}, best={"metric": "utility", "mode": mode}
    )
    history, kept = [], None
    for found in (INIT, seen(10, utility=0.55), seen(20, utility=0.6), seen(30, utility=0.9, diversity=0.01)):
        history.append(found)
        decision = decide(rules, history, kept)
        kept = found if decision.keep else kept
    assert decision.action == "roll_back"
    assert (decision.best, kept.images) == (best, best)


def test_without_a_sound_evaluation_to_return_to_training_stops():
    rules = guard(
        {"metric": "utility", "below": 0.9, "relative": "absolute", "action": "roll_back"},
        best={"metric": "diversity"},
    )
    assert decide(rules, [INIT, seen(10)]).action == "stop"


def test_nothing_is_kept_unless_a_rule_may_return_to_it():
    rules = guard({"metric": "diversity", "below": 0.5, "action": "stop"}, best={"metric": "utility"})
    assert not decide(rules, [INIT, seen(10, utility=0.9)]).keep


def test_a_number_that_no_picture_has_breaks_no_rule():
    rules = guard({"metric": "accuracy/relation", "below": 0.5, "action": "stop"})
    assert decide(rules, [INIT, seen(10)]).action == "go_on"
