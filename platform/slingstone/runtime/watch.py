"""The guard at work on every rank: the decisions of `slingstone.guard`, carried out alike by all."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch.distributed as dist
from torch import nn

from slingstone.config import Guard
from slingstone.guard import Decision, Seen, decide
from slingstone.runtime.checkpoint import Facts
from slingstone.runtime.measure import Measure
from slingstone.runtime.report import numbers


@runtime_checkable
class Kept(Protocol):
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


class Watch:
    """Judges the evaluations of a run, and keeps the training state of the best one if a rule may return to it.

    Args:
        guard: the rules; without any, nothing here does anything.
        directory: of the guard, which all nodes see; it holds what was seen.
        best: keeps one state, apart from the run's own checkpoints.
        rank: of this process.
    """

    def __init__(self, guard: Guard, directory: Path, best: Kept, rank: int) -> None:
        self._guard = guard
        self._directory = directory
        self._kept = best
        self._rank = rank
        self._history: list[Seen] = []
        self._best: Seen | None = None
        self._last = Decision("go_on", 0)

    def begin(self, measure: Measure, generator: nn.Module, facts: Facts) -> None:
        """Take note of the initial generator, and of what was seen up to here before a restart; a collective."""
        if not self._guard.rules:
            return
        initial = Seen(0, numbers(measure.initial_short(generator)))
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
        self._history.append(Seen(facts.images, numbers(summary)))
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

    def _read(self) -> list[Seen]:
        path = self._directory / "history.json"
        return [Seen(**plain) for plain in json.loads(path.read_text())] if path.is_file() else []

    def _write(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        partial = self._directory / "history.partial"
        partial.write_text(json.dumps([asdict(seen) for seen in self._history], indent=1))
        partial.replace(self._directory / "history.json")
