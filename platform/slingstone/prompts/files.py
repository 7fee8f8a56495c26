"""Prompts from files: lines of text, JSON lines, tables. Imports no torch, so that a bad file fails in a second."""

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from reward_services.unicode import HALF_PAIR
from slingstone.prompts.datasets import dataset_files

COLUMN = "prompt"
"""The column that is read unless another is named; the case of letters does not matter."""

STYLE = "style"
"""The group column of a benchmark whose prompts lie by style, as HPSv2's do."""


def read_prompts(path: str | Path, column: str | None = None) -> tuple[str, ...]:
    """Return the prompts of a file, in its order; blank ones are left out, and a prompt is one line.

    The extension tells the format: `.jsonl` (an object a line), `.csv` (comma-separated, quoted where needed), `.tsv`
    (tab-separated, quotes are characters like any other, as in PartiPrompts), `.parquet`; anything else is text with
    one prompt a line. Text is UTF-8, with or without a byte-order mark, with any line ends. A directory of tables is
    read file by file, see `dataset_files`; a dataset of the hub is first brought here by `hub.local_copy`.

    Args:
        path: the file or the directory.
        column: which column, or key of the objects, holds the prompts; None reads the one named `prompt` in any case
            of letters. A text file has none.

    Raises:
        ValueError: if the file is missing, cannot be read as its format, or has no such column or no prompt; names
            the file, the place and what to do.
    """
    return tuple(prompt for prompt, _ in _read(path, column, (), lists=False))


def read_grouped_prompts(
    path: str | Path, column: str | None = None, groups: Sequence[str] = ()
) -> dict[str, dict[str, tuple[str, ...]]]:
    """Return the distinct prompts of a file or folder with their groups, such as PartiPrompts' categories.

    Beside the formats of `read_prompts`: a `.json` file that holds a list of prompts, or an object with a list a
    style; and a folder with a `.json` list a style, named after it. Their group column is `style`, given or not.

    Returns:
        By prompt, in the order of the file, what stands in each group column, such as `{"Category": ("Animals",)}`; a
        prompt that the file repeats may belong to several groups of a column.

    Raises:
        ValueError: as `read_prompts`; or a group column is not there.
    """
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    for prompt, own in _read(path, column, groups, lists=True):
        known = found.setdefault(prompt, dict.fromkeys(own, ()))
        for name, value in own.items():
            known[name] = (*known[name], *(value,) * (value not in known[name]))
    return found


def _read(
    path: str | Path, column: str | None, groups: Sequence[str], *, lists: bool
) -> list[tuple[str, dict[str, str]]]:
    """Return the prompts with the groups of each; `lists` also reads .json files and takes folders for those."""
    place = Path(path)
    try:
        if lists and (place.is_dir() or place.suffix.lower() == ".json"):
            rows = list(_styles(place))
        else:
            files = dataset_files(place) if place.is_dir() else [place]
            rows = [row for file in files for row in _grouped(file, column, groups)]
        if not rows:
            raise ValueError("has no prompt; write at least one")
    except ValueError as error:
        raise ValueError(f"prompts file {str(path)!r} {error}") from error
    return rows


def _grouped(file: Path, column: str | None, groups: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the prompts of a table with what the same row says in the group columns."""
    for place, (cell, *values) in _cells(file, (column, *groups)):
        if prompt := _prompt(place, cell):
            yield prompt, {name: _unicode(place, str(value)) for name, value in zip(groups, values, strict=True)}


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


Columns = Sequence[str | None]
"""Which columns to read, None for the one named `prompt` in some case of letters."""


def _cells(file: Path, columns: Columns) -> Iterator[tuple[str, Sequence[Any]]]:
    """Return the place and the values of every row."""
    if not file.is_file():
        raise ValueError("does not exist; give a .txt, .jsonl, .csv, .tsv or .parquet file")
    match file.suffix.lower():
        case ".parquet":
            return _parquet(file, columns)
        case ".jsonl":
            return _json_lines(_text(file), columns)
        case ".csv":
            return _table(csv.reader(io.StringIO(_text(file), newline=""), strict=True), columns)
        case ".tsv":
            return _table(csv.reader(_lines(_text(file)), delimiter="\t", quoting=csv.QUOTE_NONE), columns)
        case ".json":
            raise ValueError("is one JSON document; write an object a line and call it .jsonl")
    if named := [column for column in columns if column is not None]:
        raise ValueError(f"is text and has no column {named[0]!r}; leave the column out, or give a table")
    return ((f"line {number}", [line]) for number, line in enumerate(_lines(_text(file)), 1))


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


def _json_lines(text: str, columns: Columns) -> Iterator[tuple[str, Sequence[Any]]]:
    for number, line in enumerate(_lines(text), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"has no JSON in line {number} ({error}); write one object a line") from error
        if not isinstance(row, dict):
            raise ValueError(f"has a {type(row).__name__} in line {number}; write an object with the key {COLUMN!r}")
        yield f"line {number}", [row[chosen(list(row), column, f"in line {number} ")] for column in columns]


def _table(rows: Any, columns: Columns) -> Iterator[tuple[str, Sequence[Any]]]:
    """Yield columns of a csv.reader whose first row names them."""
    try:
        header = next(rows, [])
        places = [header.index(chosen(header, column)) for column in columns]
        for row in rows:
            if row and len(row) != len(header):
                raise ValueError(
                    f"has {len(row)} fields in line {rows.line_num}, but {len(header)} columns; mend the line"
                )
            if row:
                yield f"line {rows.line_num}", [row[place] for place in places]
    except csv.Error as error:
        raise ValueError(f"is damaged at line {rows.line_num} ({error}); mend its quotes") from error


def _parquet(file: Path, columns: Columns) -> Iterator[tuple[str, Sequence[Any]]]:
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(file) as table:
            names = [chosen(table.schema_arrow.names, column) for column in columns]
            read = table.read(columns=list(dict.fromkeys(names)))
            rows = zip(*(read.column(name).to_pylist() for name in names), strict=True)
    except (ArrowException, OSError) as error:
        raise ValueError(f"cannot be read as parquet ({' '.join(str(error).split())}); write it again") from error
    return ((f"row {number}", row) for number, row in enumerate(rows, 1))


def chosen(names: Sequence[str], column: str | None, place: str = "") -> str:
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
    cell = _unicode(place, cell)
    return " ".join(_lines(cell)).strip()


def _unicode(place: str, text: str) -> str:
    """Return a text that can be written and sent, as one with half of a surrogate pair (JSON's `\\ud83d`) cannot."""
    if torn := HALF_PAIR.search(text):
        raise ValueError(f"has half of a character, {torn[0]!a}, in {place}; write the whole or remove it")
    return text
