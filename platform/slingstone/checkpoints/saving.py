"""Publishes checkpoints while training goes on, keeps the last and the best, and continues from the newest good one.

Every method is a collective: all ranks call it at the same step. Nothing is exchanged from the writing thread; ranks
agree on what it did at the next step. A checkpoint that cannot be written raises `SaveFailed` in whatever method
notices it, if the run is to stop then.
"""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist

from slingstone.checkpoints.collectives import from_rank_0, together
from slingstone.checkpoints.manifest import Entry, Facts, Manifest, write
from slingstone.checkpoints.run_directory import refuse_other
from slingstone.checkpoints.state import State
from slingstone.checkpoints.store import Store, read_manifest
from slingstone.config import Recovery
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


@dataclass
class Checkpoints:
    """The checkpoints of one run, as one rank sees them.

    Attributes:
        config: flat dump of the run; checkpoints of another one are refused.
        keep: how many are kept, the best one apart.
        say: shows a line to the user, on rank 0.
        waited_s: how long training stood still for the last checkpoint.
    """

    state: State
    store: Store
    recovery: Recovery
    config: Mapping[str, str]
    keep: int
    say: Callable[[str], None]
    waited_s: float = field(default=0.0, init=False)
    _pending: _Pending | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")

    def save(self, facts: Facts) -> None:
        """Copy the state, and have it written and published; waits for that only where the run says so."""
        start = time.perf_counter()
        self.finish()
        files = self.state.snapshot()
        self._pending = _Pending(facts, self._writer.submit(_write, self.store, facts.name, files))
        if not self.recovery.background:
            self.finish()
        self.waited_s = time.perf_counter() - start

    def advance(self) -> bool:
        """Take a checkpoint on its way further if all ranks are ready; return whether one is still on its way."""
        if self._pending is None:
            return False
        work = self._pending.work
        state = torch.tensor([not work.done(), work.done() and work.exception() is not None], dtype=torch.float64)
        dist.all_reduce(state)
        busy, failed = state.tolist()
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
        self._pending.work = self._writer.submit(self._publish, Manifest(self._pending.facts, files))
        self._pending.publishing = True
        return True

    def finish(self) -> None:
        """Wait until nothing is on its way."""
        while self.advance():
            time.sleep(POLL_S)

    def restore(self) -> Facts | None:
        """Continue from the newest checkpoint, if there is one; what was begun and never published is deleted.

        Raises:
            ValueError: the run is to stop at a damaged checkpoint, no good one is left, or it is of another run or
                number of workers; names it.
        """
        if self.state.rank == 0:
            self.store.clear()
        dist.barrier()
        refused: list[str] = []
        for name in reversed(from_rank_0(self.store.names)):
            try:
                facts = self.restore_from(name)
            except DamagedCheckpoint as error:
                if self.recovery.on_damaged_checkpoint == "stop":
                    remedy = "set recovery.on_damaged_checkpoint: previous to continue from the one before"
                    raise ValueError(f"{error}; {remedy}") from error
                refused.append(str(error))
                self.say(f"{error}; set aside, going on from the one before")
                if self.state.rank == 0:
                    self.store.set_aside(name)
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
        manifest = from_rank_0(lambda: read_manifest(self.store, name))
        with self.store.opened(name) as directory:
            with together():
                facts = manifest.facts
                same = {key: value for key, value in self.config.items() if key in facts.config}
                refuse_other(f"checkpoint {name}", {key: facts.config[key] for key in same}, same)
                # Each rank hashes its share: together they read everything once.
                manifest.check(directory, sorted(manifest.files)[self.state.rank :: dist.get_world_size()])
            with together():
                self.state.restore(directory, facts)
        return facts

    def newest(self) -> str | None:
        """Return the name of the newest checkpoint."""
        self.finish()
        return next(reversed(from_rank_0(self.store.names)), None)

    def rate(self, images: int, score: float) -> None:
        """Give the checkpoint of this position the score by which the best is kept, if it is there."""
        self.finish()
        if self.state.rank == 0 and (name := Facts(images, 0, "", {}).name) in self.store.names():
            manifest = read_manifest(self.store, name)
            self.store.rewrite(name, replace(manifest, facts=replace(manifest.facts, score=score)).to_json())
        dist.barrier()

    def best(self) -> Facts | None:
        """Return what the checkpoint with the highest score says about itself, if any has one."""
        self.finish()
        return from_rank_0(lambda: _best(self.store))

    def delete_all(self) -> None:
        """Delete every checkpoint."""
        self.finish()
        if self.state.rank == 0:
            for name in self.store.names():
                self.store.delete(name)
        dist.barrier()

    def _publish(self, manifest: Manifest) -> None:
        """Publish on rank 0, and delete what is neither one of the last nor the best."""
        if self.state.rank > 0:
            return
        name = manifest.facts.name
        self.store.publish(name, manifest.to_json())
        best = _best(self.store)
        # The last ones as they were made: after a return to an earlier position, a higher one may be older.
        others = [other for other in self.store.names() if other != name]
        for other in others[: max(0, len(others) - self.keep + 1)]:
            if best is None or other != best.name:
                self.store.delete(other)

    def _give_up(self, pending: _Pending) -> None:
        self._pending = None
        error = pending.work.exception()
        reason = str(error) if error is not None else "another worker could not write its part"
        message = f"checkpoint {pending.facts.name} cannot be saved: {reason}; the one before it is still good"
        if self.state.rank == 0:
            with suppress(OSError):  # a place that cannot be reached; the next start clears it
                self.store.clear()
        dist.barrier()
        if self.recovery.on_failed_save == "stop":
            raise SaveFailed(f"{message}; make room, or set recovery.on_failed_save: go_on")
        self.say(message)


def _write(store: Store, name: str, files: Files) -> dict[str, Entry]:
    with store.part(name) as directory:
        return write(files, directory)


def _best(store: Store) -> Facts | None:
    """Return the facts with the highest score in a store, the first of equals."""
    found: list[tuple[float, Facts]] = []
    for name in store.names():
        with suppress(DamagedCheckpoint):
            facts = read_manifest(store, name).facts
            found += [] if facts.score is None else [(facts.score, facts)]
    return max(found, key=lambda entry: entry[0])[1] if found else None
