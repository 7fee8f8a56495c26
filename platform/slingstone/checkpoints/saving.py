"""Publishes checkpoints while training goes on, keeps the last and the best, and continues from the newest good one.

Every method is a collective: all ranks call it at the same step. Nothing is exchanged from the writing thread; ranks
agree on what it did at the next step.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from slingstone.checkpoints.manifest import Entry, Manifest, write
from slingstone.checkpoints.run_directory import refuse_other
from slingstone.checkpoints.state import Facts, State, as_manifest, facts_of
from slingstone.checkpoints.store import Store
from slingstone.config import Experiment, flatten
from slingstone.engines.shards import DamagedCheckpoint, Files

POLL_S = 0.02


class SaveFailed(RuntimeError):
    """A checkpoint could not be written; those before it are as they were."""


@dataclass
class _Pending:
    """A checkpoint on its way: first every rank writes its files, then rank 0 publishes them."""

    facts: Facts
    work: Future[Any]
    publishing: bool = False


class Checkpoints:
    """The checkpoints of one run, as one rank sees them.

    Args:
        state: what is saved and restored.
        store: where.
        experiment: how many are kept, and what is done about failures.
        say: shows a line to the user, on rank 0.
        keep: how many are kept beside the best; by default as many as the run says.
    """

    def __init__(
        self, state: State, store: Store, experiment: Experiment, say: Callable[[str], None], keep: int | None = None
    ) -> None:
        self._state = state
        self._store = store
        self._experiment = experiment
        self._keep = experiment.training.keep_checkpoints if keep is None else keep
        self._say = say
        self._pending: _Pending | None = None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.waited_s = 0.0
        """How long training stood still for the last checkpoint."""

    def save(self, facts: Facts) -> None:
        """Copy the state, and have it written and published; waits for that only where the run says so.

        Raises:
            SaveFailed: this one, or the one before it, cannot be written, where the run is to stop then.
        """
        start = time.perf_counter()
        self.finish()
        files = self._state.snapshot()
        self._pending = _Pending(facts, self._writer.submit(_write, self._store, facts.name, files))
        if not self._experiment.recovery.background:
            self.finish()
        self.waited_s = time.perf_counter() - start

    def advance(self) -> bool:
        """Take a checkpoint on its way further if all ranks are ready; return whether one is still on its way.

        Raises:
            SaveFailed: see `save`.
        """
        if self._pending is None:
            return False
        work = self._pending.work
        busy, failed = _sum([float(not work.done()), float(work.done() and work.exception() is not None)])
        if busy:
            return True
        if failed:
            self._give_up(self._pending)
            return False
        if self._pending.publishing:
            self._pending = None
            return False
        parts: list[dict[str, Entry]] = [{}] * dist.get_world_size()
        dist.all_gather_object(parts, work.result())
        files = {path: entry for part in parts for path, entry in part.items()}
        manifest = as_manifest(self._pending.facts, files)
        publish = self._publish if self._state.rank == 0 else _nothing
        self._pending.work = self._writer.submit(publish, self._pending.facts.name, manifest)
        self._pending.publishing = True
        return True

    def finish(self) -> None:
        """Wait until nothing is on its way.

        Raises:
            SaveFailed: see `save`.
        """
        while self.advance():
            time.sleep(POLL_S)

    def restore(self) -> Facts | None:
        """Continue from the newest checkpoint, if there is one; what was begun and never published is deleted.

        Raises:
            ValueError: the run is to stop at a damaged checkpoint, no good one is left, or it is of another run or
                number of workers; names it.
        """
        if self._state.rank == 0:
            self._store.clear()
        dist.barrier()
        refused: list[str] = []
        for name in reversed(_from_rank_0(self._store.names)):
            try:
                facts = self.restore_from(name)
            except DamagedCheckpoint as error:
                if self._experiment.recovery.on_damaged_checkpoint == "stop":
                    remedy = "set recovery.on_damaged_checkpoint: previous to continue from the one before"
                    raise ValueError(f"{error}; {remedy}") from error
                refused.append(str(error))
                self._say(f"{error}; set aside, going on from the one before")
                if self._state.rank == 0:
                    self._store.set_aside(name)
                dist.barrier()
            else:
                return facts
        if refused:
            raise ValueError(f"no checkpoint is left to continue from: {'; '.join(refused)}")
        return None

    def restore_from(self, name: str) -> Facts:
        """Return to a checkpoint by its name, after every file of it was compared with its manifest.

        Raises:
            DamagedCheckpoint: on all ranks alike; nothing has been restored.
            ValueError: it is of another run or number of workers.
        """
        self.finish()
        with self._store.opened(name) as directory:
            with _together():
                manifest = Manifest.from_json(self._store.manifest(name), name)
                facts = facts_of(manifest, name)
                _refuse_foreign(facts, name, self._experiment)
                # Each rank hashes its share: together they read everything once.
                manifest.check(directory, sorted(manifest.files)[self._state.rank :: dist.get_world_size()])
            with _together():
                self._state.restore(directory, facts)
        return facts

    def newest(self) -> str | None:
        """Return the name of the newest checkpoint."""
        self.finish()
        return next(reversed(_from_rank_0(self._store.names)), None)

    def _publish(self, name: str, manifest: Manifest) -> None:
        self._store.publish(name, manifest.to_json())
        for superseded in _superseded(self._scores(), self._keep):
            self._store.delete(superseded)

    def _scores(self) -> dict[str, float | None]:
        scores: dict[str, float | None] = {}
        for name in self._store.names():
            try:
                scores[name] = facts_of(Manifest.from_json(self._store.manifest(name), name), name).score
            except DamagedCheckpoint:
                scores[name] = None
        return scores

    def _give_up(self, pending: _Pending) -> None:
        self._pending = None
        error = pending.work.exception()
        reason = str(error) if error is not None else "another worker could not write its part"
        message = f"checkpoint {pending.facts.name} cannot be saved: {reason}; the one before it is still good"
        if self._state.rank == 0:
            with suppress(OSError):  # a place that cannot be reached; the next start clears it
                self._store.clear()
        dist.barrier()
        if self._experiment.recovery.on_failed_save == "stop":
            raise SaveFailed(f"{message}; make room, or set recovery.on_failed_save: go_on")
        self._say(message)


def _write(store: Store, name: str, files: Files) -> dict[str, Entry]:
    with store.part(name) as directory:
        return write(files, directory)


def _nothing(name: str, manifest: Manifest) -> None:
    """Stand by while rank 0 publishes."""


def _superseded(scores: dict[str, float | None], keep: int) -> list[str]:
    """Return the names, oldest first, of neither the last `keep` nor the best."""
    scored = {name: score for name, score in scores.items() if score is not None}
    best = max(scored, key=lambda name: scored[name], default=None)
    return [name for name in sorted(scores)[:-keep] if name != best]


def _refuse_foreign(facts: Facts, name: str, experiment: Experiment) -> None:
    known = {key: value for key, value in flatten(experiment).items() if key in facts.config}
    refuse_other(f"checkpoint {name}", {key: facts.config[key] for key in known}, known)


def _sum(values: list[float]) -> list[float]:
    total = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(total)
    return total.tolist()


def _from_rank_0(ask: Callable[[], list[str]]) -> list[str]:
    """Return what rank 0 sees: a shared file system may show another node an older listing."""
    answer: list[Any] = [ask() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(answer, src=0)
    return answer[0]


@contextmanager
def _together() -> Iterator[None]:
    """Let every rank fail if one does: a rank that went on alone would wait for the others for ever."""
    own: Exception | None = None
    try:
        yield
    except Exception as error:
        own = error
    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, None if own is None else (isinstance(own, DamagedCheckpoint), str(own)))
    if own is not None and not isinstance(own, DamagedCheckpoint):
        raise own
    for damaged, message in filter(None, told):
        raise (DamagedCheckpoint if damaged else ValueError)(message) from own
