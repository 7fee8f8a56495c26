"""Prompts from files: lines of text, JSON lines, tables. Imports no torch, so that a bad file fails in a second."""

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slingstone.prompts.datasets import dataset_files, is_dataset

COLUMN = "prompt"
"""The column that is read unless another is named; the case of letters does not matter."""


def read_prompts(path: str | Path, column: str | None = None) -> tuple[str, ...]:
    """Return the prompts of a file, in its order; blank ones are left out, and a prompt is one line.

    The extension tells the format: `.jsonl` (an object a line), `.csv` (comma-separated, quoted where needed), `.tsv`
    (tab-separated, quotes are characters like any other, as in PartiPrompts), `.parquet`; anything else is text with
    one prompt a line. Text is UTF-8, with or without a byte-order mark, with any line ends. A directory of tables, or
    a dataset of the hub (`hf://datasets/owner/name`), is read file by file, see `dataset_files`.

    Args:
        path: the file, the directory or the dataset.
        column: which column, or key of the objects, holds the prompts; None reads the one named `prompt` in any case
            of letters. A text file has none.

    Raises:
        ValueError: if the file is missing, cannot be read as its format, or has no such column or no prompt; names
            the file, the place and what to do.
    """
    try:
        files = dataset_files(str(path)) if is_dataset(str(path)) else [Path(path)]
        cells = (cell for file in files for cell in _cells(file, column))
        prompts = tuple(prompt for place, cell in cells if (prompt := _prompt(place, cell)))
        if not prompts:
            raise ValueError("has no prompt; write at least one")
    except ValueError as error:
        raise ValueError(f"prompts file {str(path)!r} {error}") from error
    return prompts


@dataclass(frozen=True)
class PromptSet:
    """Distinct prompts in the order of their file, and the groups that each belongs to.

    Attributes:
        prompts: the texts.
        groups: by prompt: what stands in each group column, such as `{"Category": ("Animals",)}`; a prompt that the
            file repeats may belong to several groups of a column.
    """

    prompts: tuple[str, ...]
    groups: Mapping[str, Mapping[str, tuple[str, ...]]]


STYLE = "style"
"""The group column of a benchmark whose prompts lie by style, as HPSv2's do."""


def read_prompt_set(path: str | Path, column: str | None = None, groups: Sequence[str] = ()) -> PromptSet:
    """Return the distinct prompts of a file or folder with their groups, such as PartiPrompts' categories.

    Beside the formats of `read_prompts`: a `.json` file that holds a list of prompts, or an object with a list a
    style; and a folder with a `.json` list a style, named after it. Their group column is `style`, given or not.

    Raises:
        ValueError: as `read_prompts`; or a group column is not there.
    """
    place = Path(path)
    try:
        cells = _styles(place) if place.is_dir() or place.suffix.lower() == ".json" else _grouped(place, column, groups)
        found: dict[str, dict[str, tuple[str, ...]]] = {}
        for prompt, own in cells:
            known = found.setdefault(prompt, dict.fromkeys(own, ()))
            for name, value in own.items():
                known[name] = (*known[name], *(value,) * (value not in known[name]))
        if not found:
            raise ValueError("has no prompt; write at least one")
    except ValueError as error:
        raise ValueError(f"prompts file {str(path)!r} {error}") from error
    return PromptSet(tuple(found), found)


def _grouped(file: Path, column: str | None, groups: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the prompts of a table with what the same row says in the group columns."""
    beside = {name: dict(_cells(file, name)) for name in groups}
    for place, cell in _cells(file, column):
        if prompt := _prompt(place, cell):
            yield prompt, {name: str(values[place]) for name, values in beside.items()}


def _styles(place: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the prompts of one JSON document, or of a folder of them."""
    if place.is_dir():
        lists = {file.stem: _document(file) for file in sorted(place.glob("*.json"))}
    else:
        document = _document(place)
        lists = document if isinstance(document, dict) else {place.stem: document}
    for style, prompts in lists.items():
        if not isinstance(prompts, list):
            raise ValueError(f"has a {type(prompts).__name__} for the style {style!r}; write a list of prompts")
        for number, cell in enumerate(prompts, 1):
            if prompt := _prompt(f"{style} {number}", cell):
                yield prompt, {STYLE: style}


def _document(file: Path) -> Any:
    if not file.is_file():
        raise ValueError("does not exist; give a .json file or a folder of them")
    try:
        return json.loads(_text(file))
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON ({file.name}: {error}); mend it") from error


def _cells(file: Path, column: str | None) -> Iterator[tuple[str, Any]]:
    """Return the place and the value of every cell that should hold a prompt."""
    if not file.is_file():
        raise ValueError("does not exist; give a .txt, .jsonl, .csv, .tsv or .parquet file")
    match file.suffix.lower():
        case ".parquet":
            return _parquet(file, column)
        case ".jsonl":
            return _json_lines(_text(file), column)
        case ".csv":
            return _table(csv.reader(io.StringIO(_text(file), newline=""), strict=True), column)
        case ".tsv":
            return _table(csv.reader(_lines(_text(file)), delimiter="\t", quoting=csv.QUOTE_NONE), column)
        case ".json":
            raise ValueError("is one JSON document; write an object a line and call it .jsonl")
    if column is not None:
        raise ValueError(f"is text and has no column {column!r}; leave the column out, or give a table")
    return ((f"line {number}", line) for number, line in enumerate(_lines(_text(file)), 1))


def _text(file: Path) -> str:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 text ({error}); convert it") from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise ValueError(f"has a NUL character in line {line}, so it is no text; convert it")
    return text


def _lines(text: str) -> list[str]:
    # Not splitlines: it also breaks at form feeds and Unicode separators, which may stand inside a prompt.
    return re.split(r"\r\n|\r|\n", text)


def _json_lines(text: str, column: str | None) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(_lines(text), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"has no JSON in line {number} ({error}); write one object a line") from error
        if not isinstance(row, dict):
            raise ValueError(f"has a {type(row).__name__} in line {number}; write an object with the key {COLUMN!r}")
        yield f"line {number}", row[_chosen(list(row), column, f"in line {number} ")]


def _table(rows: Any, column: str | None) -> Iterator[tuple[str, Any]]:
    """Yield one column of a csv.reader whose first row names the columns."""
    try:
        header = next(rows, [])
        place = header.index(_chosen(header, column))
        for row in rows:
            if row and len(row) != len(header):
                raise ValueError(
                    f"has {len(row)} fields in line {rows.line_num}, but {len(header)} columns; mend the line"
                )
            if row:
                yield f"line {rows.line_num}", row[place]
    except csv.Error as error:
        raise ValueError(f"is damaged at line {rows.line_num} ({error}); mend its quotes") from error


def _parquet(file: Path, column: str | None) -> Iterator[tuple[str, Any]]:
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(file) as table:
            name = _chosen(table.schema_arrow.names, column)
            cells = table.read(columns=[name]).column(name).to_pylist()
    except (ArrowException, OSError) as error:
        raise ValueError(f"cannot be read as parquet ({' '.join(str(error).split())}); write it again") from error
    return ((f"row {number}", cell) for number, cell in enumerate(cells, 1))


def _chosen(names: Sequence[str], column: str | None, place: str = "") -> str:
    """Return the name of the column to read: `column` itself, or the only one called `prompt` in some case."""
    matching = [name for name in names if (name.lower() == COLUMN if column is None else name == column)]
    if len(matching) != 1:
        problem = "has no column" if not matching else f"has {len(matching)} columns"
        raise ValueError(
            f"{problem} {column or COLUMN!r} {place}among {', '.join(map(repr, names)) or 'none'}; "
            "name one of these as the column"
        )
    return matching[0]


def _prompt(place: str, cell: Any) -> str:
    """Return the prompt in a cell, or nothing where the cell is blank or null."""
    if cell is None:
        return ""
    if not isinstance(cell, str):
        raise ValueError(f"has a {type(cell).__name__} in {place} where a prompt should be; name the prompts' column")
    if "\0" in cell:
        raise ValueError(f"has a NUL character in {place}; remove it")
    return " ".join(re.split(r"\r\n|\r|\n", cell)).strip()
