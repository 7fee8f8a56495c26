"""Votes as lists beside picture files: HPDv2's JSON, ImageReward's ranked lists, a CSV. Pictures are read one by one.

What those formats do not know (voter, time, seeds, ...) stands beside their own keys under the names of the table.
"""

import csv
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import combinations
from pathlib import Path
from typing import Any

from slingstone.preferences.table import OURS, BadRow, Preference, from_row, opened, stop, to_row

CHUNK = 2**20
_BESIDE = (*OURS, "created_at", "model_0", "model_1")
CSV_COLUMNS = ("prompt", "first", "second", "choice", *(name for name in _BESIDE if name != "choice"))
"""Of a CSV; the first four are needed. `first` and `second` name picture files."""

Row = dict[str, Any]
_BETWEEN = re.compile(r"[\[,\s]*")


def read_folder(path: Path, bad: BadRow = stop) -> Iterator[Preference]:
    """Yield the votes of a .csv or .json file whose pictures lie beside it, or in a folder of its name.

    A JSON file is a list, of HPDv2's objects (`prompt`, `image_path`, and `human_preference` for a pair or `rank` for
    more) or of ImageReward's (`prompt`, `generations`, `ranking`). A list of k pictures is k (k - 1) / 2 votes.

    Raises:
        ValueError: the file cannot be read as what it is, or a row is bad and `bad` does not take it.
    """
    rows = _csv(path) if path.suffix.lower() == ".csv" else _lists(path)
    for number, row in enumerate(rows, 1):
        place = f"{path}, row {number}"
        try:
            votes = [from_row(_with_pictures(pair, path), place) for pair in _pairs(row, place)]
        except ValueError as error:
            bad(error if str(error).startswith(place) else ValueError(f"{place}: {error}"))
            continue
        yield from votes


def write_folder(path: Path, preferences: Iterable[Preference]) -> int:
    """Write votes as the suffix says (.csv, .ranked.json, or .json for HPDv2's), and their pictures into a folder."""
    pictures = path.with_name(_stem(path))
    pictures.mkdir(parents=True, exist_ok=True)
    count = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, CSV_COLUMNS)
        if path.suffix == ".csv":
            table.writeheader()
        for count, vote in enumerate(preferences, 1):
            row = to_row(vote)
            beside = {name: row[name] for name in _BESIDE if row[name] is not None}
            if vote.time is not None:
                beside["created_at"] = vote.time.isoformat()
            names = [
                f"{pictures.name}/{_write_picture(pictures, picture.data, picture.digest)}" for picture in vote.pictures
            ]
            if path.suffix == ".csv":
                table.writerow({"prompt": vote.prompt, "first": names[0], "second": names[1]} | beside)
                continue
            item = {"prompt": vote.prompt} | _listed(path, names, vote.labels) | beside
            file.write(("[\n" if count == 1 else ",\n") + json.dumps(item, ensure_ascii=False))
        if path.suffix != ".csv":
            file.write("\n]\n" if count else "[]\n")
    return count


def _listed(path: Path, names: list[str], labels: tuple[float, float]) -> Row:
    if path.name.endswith(".ranked.json"):
        return {"generations": names, "ranking": [2 if label < max(labels) else 1 for label in labels]}
    return {"image_path": names, "human_preference": [int(label) if label != 0.5 else label for label in labels]}


def _stem(path: Path) -> str:
    return path.name.partition(".")[0]


def _write_picture(folder: Path, data: bytes, digest: str) -> str:
    with opened(data) as picture:
        name = f"{digest}.{(picture.format or 'png').lower()}"
    if not (folder / name).exists():
        (folder / name).write_bytes(data)
    return name


def _with_pictures(row: Row, path: Path) -> Row:
    read = {}
    for side in (0, 1):
        name = row.pop(f"file_{side}")
        found = [place / name for place in (path.parent, path.parent / _stem(path)) if (place / name).is_file()]
        if not found:
            raise ValueError(f"the picture {name!r} does not exist; put it beside the file or into {_stem(path)}/")
        read[f"jpg_{side}"] = found[0].read_bytes()
    return row | read


def _pairs(row: Row, place: str) -> Iterator[Row]:
    """Yield the votes of one row: what the table holds, with file names instead of pictures."""
    ours = {name: row[name] for name in _BESIDE if row.get(name) not in (None, "")}
    files = row.get("generations", row.get("image_path"))
    if files is None:  # a row of a CSV
        if missing := [name for name in CSV_COLUMNS[:4] if not row.get(name)]:
            raise ValueError(f"{place}: has no {', '.join(missing)}; a CSV needs {', '.join(CSV_COLUMNS[:4])}")
        yield {"caption": row["prompt"], "file_0": row["first"], "file_1": row["second"]} | ours
        return
    higher = row.get("human_preference") if "rank" not in row else None
    values = higher or row.get("ranking", row.get("rank"))
    numbers = isinstance(values, list) and all(isinstance(value, int | float) for value in values)
    if not isinstance(files, list) or not isinstance(values, list) or not numbers or len(files) != len(values):
        raise ValueError(f"{place}: has no list of pictures with as many numbers in human_preference, rank or ranking")
    if len(files) < 2:
        raise ValueError(f"{place}: has {len(files)} picture; a vote is between two")
    for one, other in combinations(range(len(files)), 2):
        # Of lists that are sorted best first, the better one shall not always come first.
        left, right = (one, other) if (one + other) % 2 else (other, one)
        gap = (values[left] - values[right]) * (1 if higher else -1)
        if higher and gap == 0 and len(files) > 2:
            continue  # neither was the one that was chosen
        labels = (0.5, 0.5) if gap == 0 else (float(gap > 0), float(gap < 0))
        vote = {"caption": row.get("prompt"), "file_0": files[left], "file_1": files[right]} | ours
        yield vote | {"label_0": labels[0], "label_1": labels[1]}


def _csv(path: Path) -> Iterator[Row]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, strict=True)
            if missing := [name for name in CSV_COLUMNS[:4] if name not in (rows.fieldnames or ())]:
                raise ValueError(
                    f"{path}: has no column {', '.join(missing)}; a CSV needs {', '.join(CSV_COLUMNS[:4])}"
                )
            yield from rows
    except (csv.Error, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as CSV ({error}); mend it") from error


def _lists(path: Path) -> Iterator[Row]:
    """Yield the objects of a JSON list, a megabyte of text at a time."""
    decoder, text, place, lead = json.JSONDecoder(), "", 0, "["
    try:
        with path.open(encoding="utf-8-sig") as file:
            for chunk in iter(lambda: file.read(CHUNK), ""):
                text, place = text[place:] + chunk, 0
                if not text.lstrip().startswith(lead):
                    break
                lead = ""
                with suppress(json.JSONDecodeError):  # at an object whose rest comes with the next chunk
                    while (start := _BETWEEN.match(text, place)) and text.startswith("{", start.end()):
                        item, place = decoder.raw_decode(text, start.end())
                        yield item
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as text ({error}); give a .json list") from error
    if (rest := text[place:].strip("[ ,\t\r\n")) != "]":
        raise ValueError(f"{path}: is no list of JSON objects, or is cut short at {rest[:40]!r}; write it again")
