"""Prompts of the Hugging Face hub: of a dataset's tables, the columns that are read, once. Imports no torch.

The hub serves every dataset as parquet: written so by its owner, or converted on the branch `refs/convert/parquet`. Of
parquet, single columns are read over HTTP. So `huggingface_hub`, which the networks need anyway, and pyarrow read them
all; the package `datasets` would add a cache and a format of its own, and nothing that a column of prompts needs.
"""

import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from slingstone.atomic import replacing
from slingstone.prompts.datasets import of_one_split
from slingstone.prompts.files import Columns, chosen

HUB = re.compile(r"hf://datasets/(?P<name>[\w-][\w.-]*/[\w.-]+)(@(?P<revision>[^/]+))?(/(?P<path>.+))?")
CONVERTED = "refs/convert/parquet"
BLOCK_BYTES = 2**16


class HubAway(RuntimeError):
    """The hub does not answer, which is no mistake of the configuration."""


def local_copy(location: str, columns: Columns, storage: str) -> str:
    """Return a file with the columns of a hub's dataset, read now if it was not before; another location as it is.

    What is read is what the hub has at that time: a later run with the same storage sees the same prompts. The size
    of the columns is told on stderr first.

    Args:
        location: `hf://datasets/owner/name`, with a revision after `@`, and with a path in the repository (or the
            beginning of one) after that, such as `hf://datasets/owner/name@main/data/validation`.
        columns: as in `read_grouped_prompts`; None is the one named `prompt`.
        storage: the copy lies below it, under `prompts`; all nodes see it.

    Raises:
        ValueError: the hub has no such dataset, revision, path or column.
        HubAway: it does not answer.
    """
    if not location.startswith("hf://"):
        return location
    key = hashlib.sha256(json.dumps([location, *columns]).encode()).hexdigest()[:10]
    try:
        copy = Path(storage) / "prompts" / f"{_named(location)['name'].replace('/', '--')}-{key}.parquet"
        if not copy.is_file():
            with opened(location) as tables:
                _write(_read(location, tables, columns), copy)
    except ValueError as error:
        raise ValueError(f"prompts {location!r}: {error}") from error
    except HubAway as error:
        raise HubAway(f"prompts {location!r}: {error}") from error
    return str(copy)


@contextmanager
def opened(location: str) -> Iterator[dict[str, Any]]:
    """Yield the parquet files of a hub's dataset by their paths, open: only what is read of them is sent.

    Raises:
        ValueError: the hub has no such dataset, revision or path.
        HubAway: it does not answer, now or while the files are read.
    """
    named = _named(location)
    from huggingface_hub import HfApi, HfFileSystem
    from huggingface_hub import errors as hub
    from pyarrow import parquet

    try:
        revision, files = _files(HfApi(), named["name"], named["revision"], named["path"] or "")
        system, tables = HfFileSystem(skip_instance_cache=True), {}
        for file in files:
            place = f"datasets/{named['name']}@{revision}/{file}"
            tables[file] = parquet.ParquetFile(system.open(place, block_size=BLOCK_BYTES), pre_buffer=True)
        yield tables
    except (hub.RepositoryNotFoundError, hub.RevisionNotFoundError, hub.DisabledRepoError) as error:
        raise ValueError(f"the hub does not give it; mend the name, or log in: {_line(error)}") from error
    except ValueError:
        raise
    except Exception as error:  # of whatever transport the hub's client uses
        remedy = "try again later, or name a file that is here"
        raise HubAway(f"the hub does not answer; {remedy}: {_line(error)}") from error


def announce(location: str, tables: Mapping[str, Any], names: Sequence[Sequence[str]]) -> None:
    """Tell on stderr how much will be read of each table, before it is."""
    size = sum(map(_size, tables.values(), names)) / 2**20
    print(f"reading {', '.join(names[0])} of {location}: {size:.1f} MiB in {len(tables)} files", file=sys.stderr)


def _named(location: str) -> re.Match[str]:
    if (named := HUB.fullmatch(location)) is None:
        raise ValueError("is no dataset of the hub; write hf://datasets/owner/name[@revision][/path]")
    return named


def _read(location: str, tables: Mapping[str, Any], columns: Columns) -> Any:
    from pyarrow import concat_tables

    names = [
        list(dict.fromkeys(chosen(table.schema_arrow.names, column) for column in columns)) for table in tables.values()
    ]
    announce(location, tables, names)
    return concat_tables([table.read(columns=own) for table, own in zip(tables.values(), names, strict=True)])


def _files(api: Any, name: str, revision: str | None, path: str) -> tuple[str, list[str]]:
    """Return the commit and the parquet files to read: the owner's own, else the hub's conversion."""
    from huggingface_hub.errors import RevisionNotFoundError

    for branch in [revision] if revision else [None, CONVERTED]:
        try:
            info = api.dataset_info(name, revision=branch)
        except RevisionNotFoundError:
            if branch == CONVERTED:
                break
            raise
        there = [file.rfilename for file in info.siblings or () if file.rfilename.endswith(".parquet")]
        if found := of_one_split(there, path):
            return info.sha, found
    raise ValueError(
        f"has no parquet files {path!r}; look at the dataset's files, and give the beginning of their paths"
    )


def _size(table: Any, names: Sequence[str]) -> int:
    """Return the bytes of a file's columns as they are stored."""
    groups = [table.metadata.row_group(index) for index in range(table.metadata.num_row_groups)]
    parts = [group.column(index) for group in groups for index in range(group.num_columns)]
    return sum(part.total_compressed_size for part in parts if part.path_in_schema in names)


def _write(table: Any, file: Path) -> None:
    from pyarrow import parquet

    with replacing(file) as path:
        parquet.write_table(table, path)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
