import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from slingstone.preferences.parquet import read_parquet, write_parquet
from slingstone.preferences.table import SCHEMA, Picture, Preference, decoded
from tests.preferences.votes import PROMPTS, picture, votes

PICKAPIC = [*SCHEMA.names[: SCHEMA.names.index("num_example_per_prompt") + 1]]


def changed(path: Path, **columns: list) -> Path:
    """Write a file anew with other values in some columns."""
    table = parquet.read_table(path)
    for name, values in columns.items():
        field = table.schema.field(name)
        table = table.set_column(table.schema.get_field_index(name), field, pa.array(values, field.type))
    parquet.write_table(table, path)
    return path


def test_votes_come_back_from_parquet_exactly_as_they_were(tmp_path: Path) -> None:
    given = list(votes(600))  # three row groups
    assert write_parquet(tmp_path / "votes.parquet", iter(given)) == 600
    assert list(read_parquet(tmp_path / "votes.parquet")) == given
    assert {vote.prompt for vote in given} == set(PROMPTS)


def test_the_table_has_pickapics_columns_as_its_own_trainer_reads_them(tmp_path: Path) -> None:
    write_parquet(tmp_path / "votes.parquet", votes(12))
    table = parquet.read_table(tmp_path / "votes.parquet")
    assert table.schema.names[: len(PICKAPIC)] == PICKAPIC
    assert {"caption", "jpg_0", "jpg_1", "label_0", "label_1", "has_label", "are_different"} < set(PICKAPIC)
    rows = table.to_pylist()
    assert [(row["label_0"], row["label_1"]) for row in rows[:4]] == [(1, 0), (0, 1), (0.5, 0.5), (0.5, 0.5)]
    # 12 votes over 5 prompts: the first two have three, the others two.
    assert [row["num_example_per_prompt"] for row in rows[:5]] == [3, 3, 2, 2, 2]
    assert rows[0]["best_image_uid"] == rows[0]["image_0_uid"]
    assert decoded(rows[0]["jpg_1"]).size == (16, 16)


def test_a_table_of_pickapic_is_read_although_it_lacks_our_columns(tmp_path: Path) -> None:
    path = tmp_path / "votes.parquet"
    write_parquet(path, votes(6))
    table = parquet.read_table(path).select(PICKAPIC)
    naive = table["created_at"].cast(pa.timestamp("ns"))
    table = table.set_column(3, "created_at", naive).append_column("__index_level_0__", pa.array(range(6)))
    parquet.write_table(table, path)
    read, given = list(read_parquet(path)), list(votes(6))
    assert [vote.labels for vote in read] == [vote.labels for vote in given]
    assert [vote.time for vote in read] == [vote.time for vote in given]
    assert [vote.first.digest for vote in read] == [vote.first.digest for vote in given]
    assert len({vote.voter for vote in read}) == 3
    assert len({vote.vote_id for vote in read}) == 6


@pytest.mark.parametrize(
    ("column", "values", "told"),
    [
        ("jpg_0", [b"no picture", picture((1, 2, 3))], r"first\.data = 10 bytes: is no picture that can be decoded"),
        ("caption", [" ", "good"], r"prompt = ' ': is blank"),
        ("label_0", [0.7, 0.0], r"labels 0\.7 and 0, choice = 'first' are no choice"),
        ("choice", ["second", "second"], r"labels 1 and 0, choice = 'second' are no choice"),
        ("has_label", [False, True], "has_label is false"),
        ("label_0", [None, 0.0], "has no label_0"),
        ("shown_left", ["above", None], "shown_left = 'above'"),
        ("seconds", [-1.0, 1.0], r"seconds = -1\.0"),
    ],
)
def test_a_bad_row_is_named_by_file_and_row_and_skipped_only_if_told_to(
    tmp_path: Path, column: str, values: list, told: str
) -> None:
    path = tmp_path / "votes.parquet"
    write_parquet(path, votes(2))
    changed(path, **{column: values})
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}, row 1: {told}"):
        list(read_parquet(path))
    found: list[ValueError] = []
    assert [vote.vote_id for vote in read_parquet(path, found.append)] == ["vote-1"]
    assert len(found) == 1


@pytest.mark.parametrize("text", ["", "nonsense", "a,b\n1,2\n"])
def test_a_file_that_is_no_table_is_refused_in_a_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "votes.parquet"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"votes\.parquet: cannot be read as Parquet"):
        list(read_parquet(path))
    with pytest.raises(ValueError, match="does not exist"):
        list(read_parquet(tmp_path / "absent.parquet"))


def test_a_table_cut_short_in_its_middle_is_refused_and_not_read_as_a_shorter_one(tmp_path: Path) -> None:
    path = tmp_path / "votes.parquet"
    write_parquet(path, votes(600))
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 4000] = bytes(4000)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"votes\.parquet"):
        list(read_parquet(path))


def test_a_table_without_pictures_is_refused_before_a_row_is_read(tmp_path: Path) -> None:
    path = tmp_path / "votes.parquet"
    parquet.write_table(pa.table({"caption": ["a"], "label_0": [1.0], "label_1": [0.0]}), path)
    with pytest.raises(ValueError, match=r"has no column jpg_0, jpg_1; give a table"):
        list(read_parquet(path))


def test_a_writer_that_fails_leaves_the_file_of_before_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "votes.parquet"
    write_parquet(path, votes(3))

    def torn() -> Iterator[Preference]:
        yield from votes(2)
        raise RuntimeError("away")

    with pytest.raises(RuntimeError, match="away"):
        write_parquet(path, torn())
    assert len(list(read_parquet(path))) == 3
    assert [entry.name for entry in tmp_path.iterdir()] == ["votes.parquet"]


@pytest.mark.parametrize("prompt", ["\ud83d half", "nul\0"])
def test_a_prompt_that_is_no_text_is_refused(prompt: str) -> None:
    with pytest.raises(ValueError, match="is no text"):
        next(votes(1, prompt=prompt))


def test_a_picture_that_is_cut_short_shows_when_it_is_decoded() -> None:
    whole = picture((9, 9, 9), side=64)
    assert Picture(data=whole[:60]).digest != Picture(data=whole).digest
    with pytest.raises(ValueError, match="cut short or damaged"):
        decoded(whole[:60])


def test_a_vote_cannot_be_changed() -> None:
    vote = next(votes(1))
    with pytest.raises(ValueError, match="frozen"):
        vote.choice = "tie"
    assert isinstance(vote, Preference)
