"""Whether a run hacks its reward: pure decisions about what its evaluations found, carried out elsewhere."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from slingstone.config.guard import Guard, Rule, Signal

Action = Literal["go_on", "warn", "stop", "roll_back"]
_SEVERITY: tuple[Action, ...] = ("go_on", "warn", "stop", "roll_back")


@dataclass(frozen=True)
class Seen:
    """What one evaluation during training found.

    Attributes:
        images: when.
        values: numbers by name, as MLflow has them; one that does not apply is absent.
    """

    images: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class Breach:
    """A rule that was broken as often in a row as its patience allows.

    Attributes:
        rule: the rule.
        value: what the last evaluation found.
        initial: the initial generator's value.
        bound: the bound that was passed, as a value.
    """

    rule: Rule
    value: float
    initial: float
    bound: float

    def __str__(self) -> str:
        side = "below" if self.value < self.bound else "above"
        found = f"{self.rule.metric} {self.value:.4g} is {side} {self.bound:.4g} (init {self.initial:.4g})"
        return found + (f" for {self.rule.patience} evaluations" if self.rule.patience > 1 else "")


@dataclass(frozen=True)
class Decision:
    """What to do after an evaluation.

    Attributes:
        action: the gravest that a broken rule asks for.
        images: when it was decided.
        breaches: the broken rules.
        best: when the evaluation was that `roll_back` returns to, if there is one.
        keep: whether the last evaluation is the best so far, so that its state must be kept.
    """

    action: Action
    images: int
    breaches: tuple[Breach, ...] = ()
    best: int | None = None
    keep: bool = False

    @property
    def ends(self) -> bool:
        """Whether training is over."""
        return self.action in ("stop", "roll_back")

    def __str__(self) -> str:
        doing = {"warn": "warning", "stop": "training stopped", "roll_back": f"back to {self.best} images"}
        reasons = "; ".join(map(str, self.breaches)) or "no rule is broken"
        return f"guard at {self.images} images, {doing.get(self.action, 'goes on')}: {reasons}"


def decide(guard: Guard, history: Sequence[Seen], best: Seen | None = None) -> Decision:
    """Return what to do after the last evaluation of a run.

    Args:
        guard: the rules.
        history: the evaluations so far, in order; the first is of the initial generator.
        best: the evaluation whose state is kept, if one is.
    """
    initial, last = history[0].values, history[-1]
    breaches = tuple(breach for rule in guard.rules if (breach := _breach(rule, initial, history)))
    asked: list[Action] = ["go_on", *(breach.rule.action for breach in breaches)]
    action = max(asked, key=_SEVERITY.index)
    keep = guard.rolls_back and _sound(guard, initial, last) and better(guard.best, last, best)
    if keep:
        best = last
    if action == "roll_back" and best is None:
        action = "stop"  # no evaluation was without blame, so that there is nothing to return to
    return Decision(action, last.images, breaches, best.images if best else None, keep)


def better(signal: Signal | None, one: Seen, other: Seen | None) -> bool:
    """Tell whether one evaluation's signal is better than the other's; none is better than what has no signal."""
    if signal is None or signal.metric not in one.values:
        return False
    if other is None or signal.metric not in other.values:
        return True
    sign = 1 if signal.mode == "max" else -1
    return sign * one.values[signal.metric] > sign * other.values[signal.metric]


def _sound(guard: Guard, initial: Mapping[str, float], seen: Seen) -> bool:
    """Tell whether an evaluation passes no bound, patience aside."""
    return all(_passed(rule, initial, seen) is None for rule in guard.rules)


def _breach(rule: Rule, initial: Mapping[str, float], history: Sequence[Seen]) -> Breach | None:
    latest = history[1:][-rule.patience :]
    bounds = [_passed(rule, initial, seen) for seen in latest]
    if len(latest) < rule.patience or any(bound is None for bound in bounds):
        return None
    bound = bounds[-1]
    assert bound is not None
    return Breach(rule, latest[-1].values[rule.metric], initial[rule.metric], bound)


def _passed(rule: Rule, initial: Mapping[str, float], seen: Seen) -> float | None:
    """Return the bound that an evaluation passes, as a value; a number that does not apply passes none."""
    if rule.metric not in seen.values or rule.metric not in initial:
        return None
    value = seen.values[rule.metric]
    below, above = (_bound(rule, given, initial[rule.metric]) for given in (rule.below, rule.above))
    if below is not None and value < below:
        return below
    return above if above is not None and value > above else None


def _bound(rule: Rule, given: float | None, initial: float) -> float | None:
    if given is None:
        return None
    match rule.relative:
        case "ratio":
            return given * initial
        case "difference":
            return initial + given
        case "absolute":
            return given
