"""Votes as Parquet with pickapic_v2's columns and ours beside them, streamed: never more than a row group in memory."""

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from slingstone.atomic import replacing
from slingstone.preferences.table import OPTIONAL, SCHEMA, BadRow, Preference, from_row, stop, to_row

GROUP_ROWS = 256
GROUP_BYTES = 32 * 2**20
"""A row group ends with whichever it reaches first."""


class ParquetWriter:
    """Writes votes one by one; the file appears whole when the block ends well, and not at all when it does not."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self.count = 0

    def __enter__(self) -> "ParquetWriter":
        """Begin a file beside the one to come."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._votes = tempfile.TemporaryFile(dir=self._path.parent)
        self._writer = parquet.ParquetWriter(self._votes, SCHEMA)
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0
        self._of_prompt: Counter[str] = Counter()
        return self

    def append(self, preference: Preference) -> None:
        """Write a vote."""
        self._rows.append(to_row(preference))
        self.count += 1
        self._bytes += len(preference.first.data) + len(preference.second.data)
        self._of_prompt[preference.prompt] += 1
        if len(self._rows) >= GROUP_ROWS or self._bytes >= GROUP_BYTES:
            self._write()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Fill in how many votes each prompt has, and publish the file."""
        with self._votes:
            self._write()
            self._writer.close()
            if kind is None:
                self._publish()

    def _write(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, SCHEMA))
        self._rows, self._bytes = [], 0

    def _publish(self) -> None:
        self._votes.seek(0)
        column = SCHEMA.get_field_index("num_example_per_prompt")
        with (
            replacing(self._path) as partial,
            parquet.ParquetWriter(partial, SCHEMA) as writer,
            parquet.ParquetFile(self._votes) as votes,
        ):
            for group in range(votes.num_row_groups):
                table = votes.read_row_group(group)
                counts = [self._of_prompt[prompt] for prompt in table["caption"].to_pylist()]
                counted = pa.array(counts, pa.int64())
                writer.write_table(table.set_column(column, SCHEMA.field(column), counted))


def write_parquet(path: str | Path, preferences: Iterable[Preference]) -> int:
    """Write votes; return how many."""
    with ParquetWriter(path) as writer:
        for preference in preferences:
            writer.append(preference)
    return writer.count


def read_parquet(path: str | Path, bad: BadRow = stop) -> Iterator[Preference]:
    """Yield the votes of a file, ours or pickapic_v2's.

    Args:
        path: the file; other columns than the table's are left.
        bad: is told of each bad row; by default the first one stops the reading.

    Raises:
        ValueError: the file is no Parquet, lacks a column, or holds a bad row; names it.
    """
    try:
        with parquet.ParquetFile(str(path)) as table:
            yield from votes_of(table, str(path), bad)
    except FileNotFoundError:
        raise ValueError(f"{path}: does not exist; give a file of votes") from None
    except (pa.ArrowException, OSError) as error:
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: cannot be read as Parquet ({said}); write it again") from error


def votes_of(table: parquet.ParquetFile, place: str, bad: BadRow = stop) -> Iterator[Preference]:
    """Yield the votes of an open table, which `place` names in messages; see `read_parquet`."""
    batches = table.iter_batches(batch_size=64, columns=columns_of(table, place))
    for row, values in enumerate(chain.from_iterable(batch.to_pylist() for batch in batches), 1):
        try:
            vote = from_row(values, f"{place}, row {row}")
        except ValueError as error:
            bad(error)
            continue
        yield vote


def columns_of(table: parquet.ParquetFile, place: str) -> list[str]:
    """Return which of the table's columns a file has.

    Raises:
        ValueError: it lacks one that no vote can do without.
    """
    there = set(table.schema_arrow.names)
    if missing := [name for name in SCHEMA.names if name not in there and name not in OPTIONAL]:
        raise ValueError(f"{place}: has no column {', '.join(missing)}; give a table with pickapic_v2's columns")
    return [name for name in SCHEMA.names if name in there]
