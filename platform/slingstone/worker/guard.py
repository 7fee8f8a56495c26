"""The guard against reward hacking: what evaluations found, what is decided on it, and who carries that out."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from torch import nn

from slingstone import atomic
from slingstone.checkpoints.collectives import from_rank_0
from slingstone.checkpoints.manifest import Facts
from slingstone.checkpoints.saving import Checkpoints
from slingstone.config.guard import Guard, Rule
from slingstone.config.tree import Metric
from slingstone.evaluation.ranking import rank
from slingstone.evaluation.table import numbers
from slingstone.worker.measure import Measure

Action = Literal["go_on", "warn", "stop", "roll_back"]
"""From the mildest to the gravest."""


@dataclass(frozen=True)
class Finding:
    """What one evaluation found: numbers by name, as MLflow has them; one that does not apply is absent."""

    images: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class Breach:
    """A rule that was broken as often in a row as its patience allows: the last value, and the bound that it passed."""

    rule: Rule
    value: float
    initial: float
    bound: float

    def __str__(self) -> str:
        if not math.isfinite(self.value):
            return f"{self.rule.metric} is not finite: the generator drew pictures that are not"
        side = "below" if self.value < self.bound else "above"
        found = f"{self.rule.metric} {self.value:.4g} is {side} {self.bound:.4g} (init {self.initial:.4g})"
        return found + (f" for {self.rule.patience} evaluations" if self.rule.patience > 1 else "")


@dataclass(frozen=True)
class Decision:
    """What to do after an evaluation.

    Attributes:
        action: the gravest that a broken rule asks for.
        best: images of the evaluation that `roll_back` returns to, if there is one.
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


def decide(guard: Guard, history: Sequence[Finding], best: Finding | None = None) -> Decision:
    """Return what to do after the last evaluation of a run.

    Args:
        guard: the rules.
        history: the evaluations so far, in order; the first is of the initial generator.
        best: the evaluation whose state is kept, if one is.
    """
    initial, last = history[0].values, history[-1]
    breaches = tuple(breach for rule in guard.rules if (breach := _breach(rule, initial, history)))
    asked: list[Action] = ["go_on", *(breach.rule.action for breach in breaches)]
    action = max(asked, key=get_args(Action).index)
    sound = all(_passed(rule, initial, last) is None for rule in guard.rules)
    keep = guard.rolls_back and sound and _better(guard, last, best)
    best = last if keep else best
    if action == "roll_back" and best is None:
        action = "stop"  # every evaluation broke a rule, so that there is nothing to return to
    return Decision(action, last.images, breaches, best.images if best else None, keep)


def _better(guard: Guard, one: Finding, other: Finding | None) -> bool:
    """Tell whether one evaluation is better than the other by the guard's number; without it none is."""
    if guard.best is None or _rank(guard.best, one) == -math.inf:
        return False
    if other is None:
        return True
    return _rank(guard.best, one) > _rank(guard.best, other)


def _rank(best: Metric, finding: Finding) -> float:
    return rank(finding.values.get(best.metric), best.mode)


def _breach(rule: Rule, initial: Mapping[str, float], history: Sequence[Finding]) -> Breach | None:
    latest = history[1:][-rule.patience :]
    bounds = [bound for finding in latest if (bound := _passed(rule, initial, finding)) is not None]
    if len(bounds) < rule.patience:
        return None
    return Breach(rule, latest[-1].values[rule.metric], initial[rule.metric], bounds[-1])


def _passed(rule: Rule, initial: Mapping[str, float], finding: Finding) -> float | None:
    """Return the bound that an evaluation passes, as a value: NaN for a number that is not finite, which passes any.

    A number that does not apply passes none.
    """
    if rule.metric not in finding.values or rule.metric not in initial:
        return None
    value = finding.values[rule.metric]
    if not math.isfinite(value):  # no value is worse
        return math.nan
    below, above = (_bound(rule, given, initial[rule.metric]) for given in (rule.below, rule.above))
    if below is not None and value < below:
        return below
    return above if above is not None and value > above else None


def _bound(rule: Rule, given: float | None, initial: float) -> float | None:
    if given is None or rule.relative == "absolute":
        return given
    return given * initial if rule.relative == "ratio" else initial + given


class HackingGuard:
    """Judges the evaluations of a run on every rank, and saves the state of the best one if a rule may return to it.

    Args:
        guard: the rules; without any, evaluations are taken note of and nothing else.
        directory: holds the evaluations so far; all nodes see it.
        best: holds the state of the best evaluation alone, apart from the run's own checkpoints.
    """

    def __init__(self, guard: Guard, directory: Path, best: Checkpoints, rank: int) -> None:
        self._guard = guard
        self._file = directory / "history.json"
        self._checkpoints = best
        self._rank = rank
        self._history: list[Finding] = []
        self._best: Finding | None = None
        self._last = Decision("go_on", 0)

    def begin(self, measure: Measure, generator: nn.Module, facts: Facts) -> None:
        """Evaluate the initial generator, and read what was found up to here before a restart; a collective."""
        self._history = [Finding(**entry) for entry in from_rank_0(lambda: atomic.read_json(self._file)) or []]
        self._history = [finding for finding in self._history if 0 < finding.images <= facts.images]
        if not self._guard.rules:
            return
        self._history.insert(0, Finding(0, numbers(measure.initial_short(generator))))
        self._best = self._kept()
        decision = decide(self._guard, self._history, self._best)
        if facts.images == 0:
            self._save_if_best(decision, facts)
        elif self.judged(facts.images):
            self._last = decision  # which the restart did not undo

    def judged(self, images: int) -> bool:
        """Tell whether there was an evaluation at this position, before a restart too."""
        return any(finding.images == images for finding in self._history)

    def judge(self, summary: Mapping[str, Any], facts: Facts) -> Decision:
        """Decide on an evaluation, and save the state if it is the best so far; a collective."""
        self._history.append(Finding(facts.images, numbers(summary)))
        # All ranks hold the same numbers; that all obey rank 0 makes it certain that none trains on alone.
        self._last = from_rank_0(lambda: decide(self._guard, self._history, self._best))
        self._save_if_best(self._last, facts)
        self._write()
        return self._last

    def go_back(self, images: int) -> None:
        """Forget the evaluations after a position: training returned there. The best state stays the best."""
        self._history = [finding for finding in self._history if finding.images <= images]
        self._write()

    def finish(self) -> None:
        """Restore the best state, if that was the decision; a collective."""
        if self._last.action == "roll_back":
            best = self._checkpoints.best()
            assert best is not None
            assert best.images == self._last.best
            self._checkpoints.restore_from(best.name)

    @property
    def ends(self) -> bool:
        """Whether training is over."""
        return self._last.ends

    @property
    def outcome(self) -> dict[str, Any]:
        """What summary.json says of a guard that ended the training; empty if it did not."""
        if not self._last.ends:
            return {}
        back = {"best_images": self._last.best} if self._last.action == "roll_back" else {}
        return {"guard": {"action": self._last.action, "images": self._last.images, "reason": str(self._last)} | back}

    def _kept(self) -> Finding | None:
        """Return the evaluation whose state is kept, as far as it is known; one by another number goes away."""
        kept, best = self._checkpoints.best(), self._guard.best
        if kept is None or best is None or kept.score is None:
            return None
        if (kept.config.get("guard.best.metric"), kept.config.get("guard.best.mode")) != (best.metric, best.mode):
            self._checkpoints.delete_all()
            return None
        return Finding(kept.images, {best.metric: kept.score if best.mode == "max" else -kept.score})

    def _save_if_best(self, decision: Decision, facts: Facts) -> None:
        if decision.keep:
            assert self._guard.best is not None
            self._checkpoints.save(replace(facts, score=_rank(self._guard.best, self._history[-1])))
            self._best = self._kept()  # not this one, if a failed save is to be survived

    def _write(self) -> None:
        if self._rank == 0:
            atomic.write_text(self._file, json.dumps([asdict(finding) for finding in self._history], indent=1))
