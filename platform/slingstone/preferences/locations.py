"""Votes wherever they are: a file of any format, a folder, a dataset of the hub."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from slingstone.preferences.folders import read_folder, write_folder
from slingstone.preferences.parquet import columns_of, read_parquet, votes_of, write_parquet
from slingstone.preferences.table import BadRow, Preference, stop
from slingstone.prompts import hub
from slingstone.prompts.datasets import of_one_split

KINDS = (".parquet", ".csv", ".json")


def read(location: str, bad: BadRow = stop) -> Iterator[Preference]:
    """Yield votes, one in memory at a time.

    Args:
        location: `.parquet`, `.json` or `.csv`; a folder with files of one of these kinds; or
            `hf://datasets/owner/name[@revision][/path]`, of which only the table's columns are fetched, after their
            size was told on stderr, and only as far as votes are taken.
        bad: is told of each bad row; by default the first one stops the reading.

    Raises:
        ValueError: there is no such thing, it is not what its suffix says, or a row is bad; names file and row.
        HubAway: the hub does not answer.
    """
    if location.startswith("hf://"):
        yield from _of_hub(location, bad)
        return
    for file in _files(Path(location)):
        yield from read_parquet(file, bad) if file.suffix == ".parquet" else read_folder(file, bad)


def absent(field: str, location: str) -> Iterator[str]:
    """Yield what is wrong with a field that names votes which are not here; the hub is not asked."""
    if not location.startswith("hf://") and not Path(location).exists():
        yield f"{field} = {location!r}: does not exist; give votes, see `slingstone votes --help`"


def write(location: str, preferences: Iterable[Preference]) -> int:
    """Write votes as the suffix says: .parquet, .csv, .json (HPDv2's), .ranked.json (ImageReward's); return how many.

    Raises:
        ValueError: another suffix.
    """
    path = Path(location)
    if path.suffix not in KINDS:
        raise ValueError(f"{location}: is of no known kind; end it with .parquet, .csv, .json or .ranked.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_parquet(path, preferences) if path.suffix == ".parquet" else write_folder(path, preferences)


def _files(path: Path) -> list[Path]:
    if path.is_file() and path.suffix in KINDS:
        return [path]
    for kind in KINDS if path.is_dir() else ():
        if found := of_one_split(file.name for file in path.glob(f"*{kind}")):
            return [path / name for name in found]
    problem = "holds no votes" if path.exists() else "does not exist"
    raise ValueError(f"{path}: {problem}; give a .parquet, .csv or .json file, or a folder with one")


def _of_hub(location: str, bad: BadRow) -> Iterator[Preference]:
    try:
        with hub.opened(location) as tables:
            names = [columns_of(table, f"{location}, {file}") for file, table in tables.items()]
            hub.announce(location, tables, names)
            for file, table in tables.items():
                yield from votes_of(table, f"{location}, {file}", bad)
    except ValueError as error:
        raise error if str(error).startswith(location) else ValueError(f"{location}: {error}") from error
