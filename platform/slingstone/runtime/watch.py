"""The guard at work on every rank: the decisions of `slingstone.guard`, carried out alike by all."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn

from slingstone.config import Guard
from slingstone.guard import Decision, Seen, better, decide
from slingstone.runtime.checkpoint import Facts, State
from slingstone.runtime.measure import Measure
from slingstone.runtime.report import numbers


class Watch:
    """Judges the evaluations of a run, and keeps the training state of the best one if a rule may return to it.

    Args:
        guard: the rules; without any, nothing here does anything.
        directory: of the run, which all nodes see; `guard/` under it holds what was seen, and the best state.
        state: what is kept and restored.
    """

    def __init__(self, guard: Guard, directory: Path, state: State) -> None:
        self._guard = guard
        self._directory = directory / "guard"
        self._state = state
        self._history: list[Seen] = []
        self._best: Seen | None = None
        self._last = Decision("go_on", 0)

    def begin(self, measure: Measure, generator: nn.Module, facts: Facts) -> None:
        """Take note of the initial generator, and of what was seen up to here before a restart; a collective."""
        if not self._guard.rules:
            return
        initial = Seen(0, numbers(measure.initial_short(generator)))
        before = [seen for seen in self._read() if 0 < seen.images <= facts.images]
        self._history = [initial, *before]
        kept = [Seen(**json.loads((path / "seen.json").read_text())) for path in self._kept()]
        for seen in kept:
            if self._best is None or better(self._guard.best, seen, self._best):
                self._best = seen
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
        if self._state.rank == 0:
            self._write()
        self._carry_out(self._last, facts)
        return self._last

    def finish(self) -> None:
        """Restore the best state, if that was the decision; a collective."""
        if self._last.action == "roll_back":
            assert self._last.best is not None
            self._state.restore(self._path(self._last.best))

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
        target, partial = self._path(decision.images), self._directory / "partial"
        if self._state.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            (partial / "seen.json").write_text(json.dumps(asdict(self._best)))
        dist.barrier()
        self._state.save(partial, facts)
        dist.barrier()
        if self._state.rank == 0:
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
            for path in self._kept():
                if path != target:
                    shutil.rmtree(path)
        dist.barrier()

    def _path(self, images: int) -> Path:
        return self._directory / f"best_{images:09}"

    def _kept(self) -> Iterator[Path]:
        yield from sorted(self._directory.glob("best_*"))

    def _read(self) -> list[Seen]:
        path = self._directory / "history.json"
        return [Seen(**plain) for plain in json.loads(path.read_text())] if path.is_file() else []

    def _write(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        partial = self._directory / "history.partial"
        partial.write_text(json.dumps([asdict(seen) for seen in self._history], indent=1))
        partial.replace(self._directory / "history.json")
