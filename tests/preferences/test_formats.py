import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from slingstone import cli
from slingstone.preferences.locations import read, write
from slingstone.preferences.table import Preference, decoded
from tests.preferences.votes import picture, votes
from tests.prompts import fake_hub


@pytest.mark.parametrize("name", ["votes.parquet", "votes.csv", "votes.json", "votes.ranked.json"])
def test_votes_come_back_from_every_format_as_they_were(tmp_path: Path, name: str) -> None:
    given = list(votes(20))
    assert write(str(tmp_path / "out" / name), given) == 20
    assert list(read(str(tmp_path / "out" / name))) == given
    assert list(read(str(tmp_path / "out"))) == given


def _folder(tmp_path: Path, name: str, text: str) -> str:
    (tmp_path / "train").mkdir(exist_ok=True)
    for number in range(4):
        (tmp_path / "train" / f"{number}.jpg").write_bytes(picture((number * 50, 0, 0)))
    (tmp_path / name).write_text(text, encoding="utf-8")
    return str(tmp_path / name)


def _seen(found: Iterator[Preference]) -> list[tuple[int, int, str]]:
    return [(_red(vote.first.data), _red(vote.second.data), vote.choice) for vote in found]


def _red(data: bytes) -> int:
    return decoded(data).getpixel((0, 0))[0] // 50


def test_lists_of_hpdv2_as_published_are_read_with_the_pictures_of_their_folder(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a cat", "image_path": ["0.jpg", "1.jpg"], "human_preference": [0, 1], "user_hash": "x"},
        {"prompt": "a dog", "image_path": ["2.jpg", "3.jpg"], "human_preference": [1, 0]},
        {"prompt": "a cow", "image_path": ["0.jpg", "1.jpg", "2.jpg"], "rank": [2, 1, 3]},
    ]
    found = _seen(read(_folder(tmp_path, "train.json", json.dumps(rows))))
    assert found == [(0, 1, "second"), (2, 3, "first"), (0, 1, "second"), (2, 0, "second"), (1, 2, "first")]


def test_ranked_lists_of_imagereward_become_a_vote_a_pair_with_ties(tmp_path: Path) -> None:
    rows = [{"id": "7", "prompt": "a cat", "generations": [f"train/{n}.jpg" for n in range(3)], "ranking": [1, 2, 2]}]
    found = list(read(_folder(tmp_path, "valid.json", json.dumps(rows, indent=1))))
    assert _seen(iter(found)) == [(0, 1, "first"), (2, 0, "second"), (1, 2, "tie")]
    assert len({vote.vote_id for vote in found}) == 3


def test_a_folder_of_pictures_with_a_csv_of_four_columns_is_enough(tmp_path: Path) -> None:
    table = 'prompt,first,second,choice\r\n"a cat, ""big""\nblack",0.jpg,1.jpg,both_bad\r\na dog,2.jpg,3.jpg,second\r\n'
    _folder(tmp_path, "train.csv", table)
    found = list(read(str(tmp_path)))
    assert [vote.prompt for vote in found] == ['a cat, "big"\nblack', "a dog"]
    assert _seen(iter(found)) == [(0, 1, "both_bad"), (2, 3, "second")]


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("train.csv", "prompt,first\na,b\n", r"train\.csv: has no column second, choice; a CSV needs"),
        (
            "train.csv",
            "prompt,first,second,choice\na,0.jpg,9.jpg,first\n",
            r"row 1: the picture '9\.jpg' does not exist",
        ),
        ("train.csv", "prompt,first,second,choice\na,0.jpg,1.jpg,left\n", r"row 1: .*choice"),
        ("train.json", '[{"prompt": "a", "image_path": ["0.jpg"], "human_preference": [1]}]', "row 1: has 1 picture"),
        ("train.json", '[{"prompt": "a", "image_path": ["0.jpg", "1.jpg"]}]', "row 1: has no list of pictures"),
        ("train.json", '[{"prompt": "a", "image_path": ["0.jpg", "1.', "is cut short at"),
        ("train.json", '{"a": 1}', "is no list of JSON objects"),
        ("train.json", "", "is no list of JSON objects"),
    ],
)
def test_what_is_wrong_with_a_list_of_votes_is_said_with_its_file_and_row(tmp_path, name, text, told) -> None:
    with pytest.raises(ValueError, match=told):
        list(read(_folder(tmp_path, name, text)))


def test_votes_of_a_hub_dataset_are_streamed_after_their_size_was_told(monkeypatch, tmp_path, capfd) -> None:
    write(str(tmp_path / "votes.parquet"), votes(600))
    with fake_hub.running() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        hub.files["me/votes"] = {"main": {"data/train.parquet": (tmp_path / "votes.parquet").read_bytes()}}
        assert list(read("hf://datasets/me/votes")) == list(votes(600))
        assert re.search(
            r"reading are_different, .* of hf://datasets/me/votes: 0\.\d MiB in 1 files", capfd.readouterr().err
        )
        with pytest.raises(ValueError, match="hf://datasets/me/absent: the hub does not give it"):
            list(read("hf://datasets/me/absent"))


def test_the_job_imports_splits_and_counts_and_skips_only_if_told_to(tmp_path: Path, capsys) -> None:
    table = "prompt,first,second,choice\n" + "".join(f"prompt {n},0.jpg,{n % 4}.jpg,first\n" for n in range(40))
    source = _folder(tmp_path, "train.csv", table + "a,0.jpg,9.jpg,first\nb,1.jpg,0.jpg,second\n")
    (tmp_path / "train" / "3.jpg").write_bytes((tmp_path / "train" / "3.jpg").read_bytes()[:50])
    target = str(tmp_path / "votes.parquet")
    assert cli.main(["votes", "import", source, target]) == 1
    assert "its second picture is a picture that is cut short or damaged" in capsys.readouterr().err
    assert not Path(target).exists()
    assert cli.main(["votes", "import", source, target, "--skip-bad"]) == 0
    assert "votes.parquet: 31 votes" in (told := capsys.readouterr().out)
    assert "skipped 11 bad rows" in told
    assert cli.main(["votes", "split", target, str(tmp_path / "parts"), "--share", "0.3"]) == 0
    sides = [{vote.prompt for vote in read(str(tmp_path / "parts" / f"{side}.parquet"))} for side in ("train", "test")]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 31
    assert cli.main(["votes", "stats", target]) == 0
    assert re.search(r"chose first +30\n", capsys.readouterr().out)
