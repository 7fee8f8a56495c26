"""Files and directories that are whole or not there."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from slingstone import atomic


def a_file(target: Path, text: str) -> None:
    target.write_text(text)


def a_directory(target: Path, text: str) -> None:
    (target / "inner").mkdir(parents=True)
    (target / "inner" / f"{text}.txt").write_text(text)


def content(target: Path) -> list[str]:
    return [target.read_text()] if target.is_file() else [path.read_text() for path in target.rglob("*.txt")]


@pytest.mark.parametrize("write", [a_file, a_directory])
def test_what_is_replaced_is_the_old_one_until_the_new_one_is_whole_and_no_mixture_of_both(
    tmp_path, write: Callable[[Path, str], None]
):
    target = tmp_path / "kept.bin"
    for text in ("old", "new"):
        with atomic.replacing(target) as partial:
            write(partial, text)
            assert partial.suffix == ".bin", "what is written may depend on the suffix"
            assert not target.exists() if text == "old" else content(target) == ["old"]
        assert content(target) == [text]

    def fill_the_disk() -> None:
        with atomic.replacing(target) as partial:
            write(partial, "half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fill_the_disk()
    assert content(target) == ["new"]
    assert list(tmp_path.iterdir()) == [target], "nothing is left over"


def test_two_containers_with_one_process_id_never_write_at_one_name(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 1)
    target = tmp_path / "shared.json"
    with atomic.replacing(target) as first, atomic.replacing(target) as second:
        first.write_text("1")
        second.write_text("2")
    assert target.read_text() == "1", "the last to end, and neither failed"


def test_what_a_killed_writer_left_goes_away_after_a_day_and_what_another_writes_now_stays(tmp_path):
    target = tmp_path / "kept.txt"
    with atomic.replacing(target) as others:
        others.write_text("being written")
        left = others.with_name(others.name.replace(others.name[9:13], "dead"))
        left.write_text("left")
        day_before = time.time() - 2 * atomic.ABANDONED_S
        os.utime(left, (day_before, day_before))
        atomic.write_text(target, "new")
        assert others.exists()
        assert not left.exists()


@pytest.mark.parametrize("text", ["", '{"run_id": "a', "\udcff", None])
def test_a_file_of_json_that_is_cut_short_or_missing_is_to_be_made_again(tmp_path, text):
    path = tmp_path / "half.json"
    if text is not None:
        path.write_bytes(text.encode(errors="surrogateescape"))
    assert atomic.read_json(path) is None
