"""Whether a run hacks its reward: pure decisions about what its evaluations found, carried out elsewhere."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch.distributed as dist
from torch import nn

from slingstone.checkpoints.state import Facts
from slingstone.config.guard import Guard, Rule
from slingstone.config.tree import Metric
from slingstone.evaluation.table import numbers
from slingstone.worker.measure import Measure

Action = Literal["go_on", "warn", "stop", "roll_back"]
_SEVERITY: tuple[Action, ...] = ("go_on", "warn", "stop", "roll_back")


@dataclass(frozen=True)
class Finding:
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
    action = max(asked, key=_SEVERITY.index)
    keep = guard.rolls_back and _sound(guard, initial, last) and better(guard.best, last, best)
    if keep:
        best = last
    if action == "roll_back" and best is None:
        action = "stop"  # no evaluation was without blame, so that there is nothing to return to
    return Decision(action, last.images, breaches, best.images if best else None, keep)


def better(signal: Metric | None, one: Finding, other: Finding | None) -> bool:
    """Tell whether one evaluation's signal is better than the other's; none is better than what has no signal."""
    if signal is None or signal.metric not in one.values:
        return False
    if other is None or signal.metric not in other.values:
        return True
    sign = 1 if signal.mode == "max" else -1
    return sign * one.values[signal.metric] > sign * other.values[signal.metric]


def _sound(guard: Guard, initial: Mapping[str, float], seen: Finding) -> bool:
    """Tell whether an evaluation passes no bound, patience aside."""
    return all(_passed(rule, initial, seen) is None for rule in guard.rules)


def _breach(rule: Rule, initial: Mapping[str, float], history: Sequence[Finding]) -> Breach | None:
    latest = history[1:][-rule.patience :]
    bounds = [_passed(rule, initial, seen) for seen in latest]
    if len(latest) < rule.patience or any(bound is None for bound in bounds):
        return None
    bound = bounds[-1]
    assert bound is not None
    return Breach(rule, latest[-1].values[rule.metric], initial[rule.metric], bound)


def _passed(rule: Rule, initial: Mapping[str, float], seen: Finding) -> float | None:
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


@runtime_checkable
class StateKeeper(Protocol):
    """Where the training state of the best evaluation is kept, as `saving.Checkpoints` does; all are collectives."""

    def save(self, facts: Facts) -> None:
        """Begin to keep the present state."""
        ...

    def finish(self) -> None:
        """Wait until it is kept."""
        ...

    def newest(self) -> str | None:
        """Return the name of the newest state."""
        ...

    def restore_from(self, name: str) -> Facts:
        """Return to it."""
        ...


class HackingGuard:
    """Judges the evaluations of a run, and keeps the training state of the best one if a rule may return to it.

    Args:
        guard: the rules; without any, nothing here does anything.
        directory: of the guard, which all nodes see; it holds what was seen.
        best: keeps one state, apart from the run's own checkpoints.
        rank: of this process.
    """

    def __init__(self, guard: Guard, directory: Path, best: StateKeeper, rank: int) -> None:
        self._guard = guard
        self._directory = directory
        self._kept = best
        self._rank = rank
        self._history: list[Finding] = []
        self._best: Finding | None = None
        self._last = Decision("go_on", 0)

    def begin(self, measure: Measure, generator: nn.Module, facts: Facts) -> None:
        """Take note of the initial generator, and of what was seen up to here before a restart; a collective."""
        if not self._guard.rules:
            return
        initial = Finding(0, numbers(measure.initial_short(generator)))
        before = [initial, *(seen for seen in self._read() if seen.images > 0)]
        kept = self._kept.newest()
        self._best = next((seen for seen in before if kept is not None and seen.images == int(kept)), None)
        self._history = [seen for seen in before if seen.images <= facts.images]
        if facts.images == 0 and self._best is None:
            self._carry_out(decide(self._guard, self._history), facts)
        dist.barrier()  # before rank 0 writes again what all have read

    def judge(self, summary: dict[str, Any], facts: Facts) -> Decision:
        """Decide on an evaluation, and keep the state if it is the best so far; a collective."""
        if not self._guard.rules:
            return self._last
        self._history.append(Finding(facts.images, numbers(summary)))
        # All ranks hold the same numbers; that all obey rank 0 makes it certain that none trains on alone.
        decided = [decide(self._guard, self._history, self._best)]
        dist.broadcast_object_list(decided)
        self._last = decided[0]
        if self._rank == 0:
            self._write()
        self._carry_out(self._last, facts)
        return self._last

    def finish(self) -> None:
        """Restore the best state, if that was the decision; a collective."""
        if self._last.action == "roll_back":
            name = self._kept.newest()
            assert name is not None
            assert int(name) == self._last.best
            self._kept.restore_from(name)

    @property
    def outcome(self) -> dict[str, Any]:
        """What summary.json says of a guard that ended the training; empty if it did not."""
        if not self._last.ends:
            return {}
        back = {"best_images": self._last.best} if self._last.action == "roll_back" else {}
        found = {"action": self._last.action, "images": self._last.images, "reason": str(self._last)}
        return {"guard": found | back}

    def _carry_out(self, decision: Decision, facts: Facts) -> None:
        if not decision.keep:
            return
        self._best = self._history[-1]
        self._kept.save(facts)
        self._kept.finish()

    def _read(self) -> list[Finding]:
        path = self._directory / "history.json"
        return [Finding(**plain) for plain in json.loads(path.read_text())] if path.is_file() else []

    def _write(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        partial = self._directory / "history.partial"
        partial.write_text(json.dumps([asdict(seen) for seen in self._history], indent=1))
        partial.replace(self._directory / "history.json")
