"""Directories of tables as lists of files. Imports no torch."""

from collections.abc import Iterable
from pathlib import Path

TABLES = (".parquet", ".jsonl", ".csv", ".tsv")
DEFAULT = "train"
"""The split that is read where files are named after splits and no path is given."""


def dataset_files(directory: Path) -> list[Path]:
    """Return the tables of a directory in the order of their paths, of one kind and one split.

    Raises:
        ValueError: if it has no table.
    """
    for kind in TABLES:
        if found := of_one_split(str(file.relative_to(directory)) for file in directory.rglob(f"*{kind}")):
            return [directory / name for name in found]
    raise ValueError(f"has no {', '.join(TABLES)} file; give a directory with tables of prompts")


def of_one_split(names: Iterable[str], path: str = "") -> list[str]:
    """Return those of a dataset's files whose names begin with a path; without one, those of the training split."""
    there = sorted(name for name in names if name.startswith(path) and not name.startswith("."))
    return (not path and [name for name in there if DEFAULT in name]) or there
