"""The votes of a fit on disk, any of them at hand in any order, and batches of them decoded ahead of the step."""

import copy
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from slingstone.atomic import replacing
from slingstone.evaluation.grids import from_picture
from slingstone.preferences.accuracy import Judged
from slingstone.preferences.table import SCHEMA, Preference, decoded, to_row
from slingstone.prompts.sampler import PromptSampler

COLUMNS = ("vote_id", "voter", "caption", "jpg_0", "jpg_1", "label_0", "label_1", "model_0", "model_1")
BATCH_ROWS = 64
LOADING_THREADS = 4

Prepare = Callable[[Float[Tensor, "1 3 rows columns"]], Float[Tensor, "1 3 size size"]]


class VoteStore:
    """Votes in an Arrow file that is mapped into memory: a vote is read when it is asked for, and nothing else."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = pa.ipc.open_file(pa.memory_map(str(path)))
        sizes = [self._file.get_batch(batch).num_rows for batch in range(self._file.num_record_batches)]
        self._length = sum(sizes)

    @classmethod
    def write(cls, path: Path, preferences: Iterable[Preference]) -> "VoteStore":
        """Copy votes to a file, which appears whole or not at all."""
        schema = pa.schema([SCHEMA.field(name) for name in COLUMNS])
        rows: list[dict[str, Any]] = []
        with replacing(path) as partial, pa.ipc.new_file(str(partial), schema) as writer:
            for vote in chain(preferences, (None,)):
                if rows and (vote is None or len(rows) == BATCH_ROWS):
                    writer.write_batch(pa.RecordBatch.from_pylist(rows, schema))
                    rows = []
                if vote is not None:
                    row = to_row(vote)
                    rows.append({name: row[name] for name in COLUMNS})
        return cls(path)

    def __len__(self) -> int:
        """Number of votes."""
        return self._length

    def row(self, index: int) -> dict[str, Any]:
        """Return one vote's columns."""
        batch, place = divmod(index, BATCH_ROWS)
        return self._file.get_batch(batch).slice(place, 1).to_pylist()[0]

    def column(self, name: str) -> list[Any]:
        """Return a column of all votes; ask for none that holds pictures."""
        batches = range(self._file.num_record_batches)
        return list(chain.from_iterable(self._file.get_batch(batch).column(name).to_pylist() for batch in batches))

    @cached_property
    def of_prompt(self) -> Counter[str]:
        """How many votes each prompt has."""
        return Counter(self.column("caption"))

    @cached_property
    def digest(self) -> str:
        """Tells these votes from others."""
        parts = zip(*(self.column(name) for name in ("vote_id", "caption", "label_0")), strict=True)
        return hashlib.sha256(json.dumps(list(parts)).encode()).hexdigest()


def judged_of(store: VoteStore, scores: Float[np.ndarray, "2 vote"]) -> Judged:
    """Return the scores of a store's first and second pictures beside its votes."""
    labels = np.array([store.column("label_0"), store.column("label_1")])
    pairs = zip(store.column("model_0"), store.column("model_1"), strict=True)
    models = [" / ".join(sorted(name or "unknown" for name in pair)) for pair in pairs]
    return Judged(scores, labels, store.column("caption"), store.column("voter"), models)


@dataclass(frozen=True)
class Batch:
    """Votes that are ready to be scored.

    Attributes:
        pictures: the first of every vote, then the second of every vote, as the reward's preprocessing fits them.
        prompts: of the votes.
        labels: of first and second.
    """

    pictures: Float[Tensor, "picture 3 size size"]
    prompts: Sequence[str]
    labels: Float[Tensor, "2 vote"]
    weights: Float[Tensor, "heads vote"]


class Loader:
    """Makes batches of votes: decodes, fits and weighs them, in threads.

    Args:
        store: the votes.
        prepare: what the reward does to a picture before its tower.
        by_prompt: divide each vote's weight by how many its prompt has.
        heads: of an ensemble; with more than one, each sees every vote as often as a bootstrap sample would.
        seed: of those samples.
    """

    def __init__(self, store: VoteStore, prepare: Prepare, by_prompt: bool = False, heads: int = 1, seed: int = 0):
        self._store, self._prepare, self._by_prompt = store, prepare, by_prompt
        self._heads, self._seed = heads, seed
        self._threads = ThreadPoolExecutor(LOADING_THREADS, thread_name_prefix="votes")

    def load(self, indices: Sequence[int]) -> Batch:
        """Return these votes.

        Raises:
            ValueError: a picture cannot be decoded; names the vote.
        """
        rows = [self._store.row(index) for index in indices]
        fitted = list(self._threads.map(self._fitted, [(row, side) for side in (0, 1) for row in rows]))
        labels = torch.tensor([[row[f"label_{side}"] for row in rows] for side in (0, 1)])
        weights = np.stack([self._weights(row) for row in rows], axis=1)
        return Batch(torch.cat(fitted), [row["caption"] for row in rows], labels, torch.from_numpy(weights).float())

    def _fitted(self, place: tuple[dict[str, Any], int]) -> Tensor:
        row, side = place
        try:
            picture = from_picture(decoded(row[f"jpg_{side}"]))
        except ValueError as error:
            raise ValueError(f"vote {row['vote_id']}: picture {side} {error}; or set votes.on_bad_row: skip") from None
        with torch.no_grad():
            return self._prepare(picture[None])

    def _weights(self, row: dict[str, Any]) -> np.ndarray:
        share = 1 / self._store.of_prompt[row["caption"]] if self._by_prompt else 1.0
        if self._heads == 1:
            return np.array([share])
        digest = hashlib.sha256(f"{self._seed}/{row['vote_id']}".encode()).digest()
        return share * np.random.default_rng(int.from_bytes(digest[:8], "big")).poisson(1.0, self._heads)


class Stream:
    """Endless batches in the order of a sampler, the next one loaded while this one is computed with."""

    def __init__(self, loader: Loader, sampler: PromptSampler) -> None:
        self._loader, self.sampler = loader, sampler
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="ahead")
        self._coming: tuple[list[str], Future[Batch]] | None = None

    def __next__(self) -> Batch:
        """Return this rank's votes of the next step."""
        names = next(self.sampler)
        batch = self._coming[1].result() if self._coming is not None and self._coming[0] == names else self._load(names)
        following = next(copy.copy(self.sampler))
        self._coming = following, self._ahead.submit(self._load, following)
        return batch

    def _load(self, names: Sequence[str]) -> Batch:
        return self._loader.load([int(name.partition("/")[0]) for name in names])


def sampler_of(store: VoteStore, batch: int, rank: int, world: int, seed: int) -> PromptSampler:
    """Return the order of the votes; its position means nothing with other votes."""
    names = [f"{index}/{store.digest[:16]}" for index in range(len(store))]
    return PromptSampler(names, batch, rank, world, seed)
