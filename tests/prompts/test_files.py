import json
import subprocess
import sys
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from slingstone.prompts.files import read_grouped_prompts, read_prompts

EXPECTED = ("a réd disc", 'a sign that says "STOP"', '"GIGGLE" painted, in red', "a blue\u2028disc")
ROWS = [*EXPECTED[:2], "", *EXPECTED[2:], "  "]
CONTENTS = {
    ".txt": "\n".join(ROWS),
    ".jsonl": "\n\n".join(json.dumps({"id": 1, "prompt": row}, ensure_ascii=False) for row in ROWS),
    # As PartiPrompts: no quoting, and columns that no run needs.
    ".tsv": "Prompt\tCategory\tNote\n" + "\n".join(f"{row}\tAnimals\t" for row in ROWS),
    ".csv": "id,prompt\n" + "\n".join('7,"' + row.replace('"', '""') + '"' for row in ROWS),
}


def written(directory: Path, name: str, content: bytes | str) -> Path:
    file = directory / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def table(directory: Path, **columns: object) -> Path:
    parquet.write_table(pyarrow.table(columns), directory / "prompts.parquet")
    return directory / "prompts.parquet"


@pytest.mark.parametrize("suffix", CONTENTS)
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "marked"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["lf", "crlf", "cr"])
def test_every_format_of_text_gives_the_same_prompts(tmp_path: Path, suffix: str, mark: str, end: str) -> None:
    content = mark + CONTENTS[suffix].replace("\n", end) + end
    assert read_prompts(written(tmp_path, f"prompts{suffix.upper()}", content)) == EXPECTED


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string(), pyarrow.dictionary(pyarrow.int32(), "str")])
def test_parquet_gives_the_same_prompts_and_no_nulls(tmp_path: Path, kind: pyarrow.DataType) -> None:
    cells = pyarrow.array([*ROWS, None], pyarrow.string()).cast(kind)
    assert read_prompts(table(tmp_path, id=range(len(cells)), PROMPT=cells)) == EXPECTED


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".parquet"])
def test_another_column_is_read_when_it_is_named(tmp_path: Path, suffix: str) -> None:
    if suffix == ".parquet":
        file = table(tmp_path, prompt=["no"], caption=["a cat"])
    else:
        comma = "\t" if suffix == ".tsv" else ","
        rows = '{"prompt": "no", "caption": "a cat"}' if suffix == ".jsonl" else f"prompt{comma}caption\nno{comma}a cat"
        file = written(tmp_path, f"prompts{suffix}", rows)
    assert read_prompts(file, "caption") == ("a cat",)
    assert read_prompts(file) == ("no",)
    with pytest.raises(ValueError, match=r"has no column 'Caption'.*among 'prompt', 'caption'; name one") as caught:
        read_prompts(file, "Caption")
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl"])
def test_a_prompt_of_several_lines_becomes_one_line(tmp_path: Path, name: str) -> None:
    content = 'prompt\n"a cat\r\non a mat"\n' if name == "x.csv" else '{"prompt": "a cat\\r\\non a mat"}'
    assert read_prompts(written(tmp_path, name, content)) == ("a cat on a mat",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", None, "does not exist; give a .txt, .jsonl, .csv, .tsv or .parquet file"),
        ("x.txt", b"\n \r\n", "has no prompt; write at least one"),
        ("x.txt", b"", "has no prompt"),
        ("x.txt", b"a \xff disc", "is not UTF-8 text"),
        ("x.txt", "a cat\n".encode("utf-16-le"), "has a NUL character in line 1"),
        ("x.txt", b"a cat\na \0 dog", "has a NUL character in line 2, so it is no text; convert it"),
        ("x.json", b'["a cat"]', "is one JSON document; write an object a line and call it .jsonl"),
        ("x.jsonl", b"", "has no prompt"),
        ("x.jsonl", b'{"prompt": "a"}\n{"prompt": ', "has no JSON in line 2"),
        ("x.jsonl", b'{"prompt": "a"}\n"b"', "has a str in line 2; write an object with the key 'prompt'"),
        ("x.jsonl", b'{"prompt": "a"}\n{"text": "b"}', "has no column 'prompt' in line 2 among 'text'; name one"),
        ("x.jsonl", b'{"prompt": 3}', "has a int in line 1 where a prompt should be"),
        ("x.jsonl", b'{"prompt": "a\\u0000"}', "has a NUL character in line 1; remove it"),
        ("x.jsonl", b'{"prompt": "a", "Prompt": "b"}', "has 2 columns 'prompt' in line 1 among 'prompt', 'Prompt'"),
        ("x.csv", b"", "has no column 'prompt' among none"),
        ("x.csv", b"prompt,note\n", "has no prompt"),
        ("x.csv", b"caption,note\na cat,\n", "has no column 'prompt' among 'caption', 'note'; name one of these"),
        ("x.csv", b"prompt,note\na cat, sitting, here\n", "has 3 fields in line 2, but 2 columns; mend the line"),
        ("x.csv", b'prompt,note\n"a cat,\n', "is damaged at line 2"),
        ("x.tsv", b"Prompt\tNote\na cat\n", "has 1 fields in line 2, but 2 columns"),
        ("x.parquet", b"PAR1 cut short", "cannot be read as parquet"),
    ],
)
def test_a_bad_file_is_named_with_the_place_and_the_remedy(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    file = tmp_path / name if content is None else written(tmp_path, name, content)
    with pytest.raises(ValueError, match=message) as caught:
        read_prompts(str(file))
    assert str(caught.value).startswith(f"prompts file {str(file)!r} ")


def test_a_column_of_numbers_in_parquet_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has a int in row 1 where a prompt should be; name the prompts' column"):
        read_prompts(table(tmp_path, prompt=[1, 2]))


def test_a_column_of_a_text_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is text and has no column 'caption'; leave the column out"):
        read_prompts(written(tmp_path, "x.txt", "a cat"), "caption")


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), min_size=1))
def test_json_lines_keep_every_prompt_but_for_its_line_breaks(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    expected = [text.replace("\r\n", " ").replace("\r", " ").replace("\n", " ").strip() for text in [*texts, "end"]]
    rows = [json.dumps({"prompt": text}, ensure_ascii=False) for text in [*texts, "end"]]
    file = written(tmp_path_factory.mktemp("prompts"), "x.jsonl", "\n".join(rows))
    assert read_prompts(file) == tuple(text for text in expected if text)


def test_reading_text_needs_neither_torch_nor_pyarrow(tmp_path: Path) -> None:
    file = written(tmp_path, "x.tsv", "Prompt\na cat\n")
    code = (
        "import sys; from slingstone.prompts.files import read_prompts; read_prompts(sys.argv[1]);"
        "print({'torch', 'ray', 'pyarrow'} & set(sys.modules))"
    )
    said = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "set()"


def test_groups_of_a_table_go_with_their_prompts(tmp_path):
    path = tmp_path / "parti.tsv"
    path.write_text(
        'Prompt\tCategory\tChallenge\na "bond"\tAbstract\tBasic\na cat\tAnimals\tBasic\na cat\tArts\tBasic\n'
    )
    found = read_grouped_prompts(path, groups=("Category", "Challenge"))
    assert list(found) == ['a "bond"', "a cat"]
    assert found["a cat"] == {"Category": ("Animals", "Arts"), "Challenge": ("Basic",)}
    with pytest.raises(ValueError, match=r"parti.tsv' has no column 'Style'"):
        read_grouped_prompts(path, groups=("Style",))


def test_json_lines_and_parquet_have_groups_too(tmp_path):
    path = tmp_path / "geneval.jsonl"
    path.write_text('{"tag": "single_object", "include": [], "prompt": "a photo of a bench"}\n')
    expected = {"a photo of a bench": {"tag": ("single_object",)}}
    assert read_grouped_prompts(path, groups=("tag",)) == expected
    file = table(tmp_path, tag=["single_object"], n=[1], prompt=["a photo of a bench"])
    assert read_grouped_prompts(file, groups=("tag",)) == expected
    text = written(tmp_path, "x.txt", "a photo of a bench")
    with pytest.raises(ValueError, match="is text and has no column 'tag'"):
        read_grouped_prompts(text, groups=("tag",))


def test_a_benchmark_by_style_is_a_folder_of_lists_or_one_document(tmp_path):
    (tmp_path / "anime.json").write_text('["a girl", "a tower"]')
    (tmp_path / "photo.json").write_text('["a girl"]')
    one = tmp_path / "all.json"
    one.write_text('{"anime": ["a girl", "a tower"], "photo": ["a girl"]}')
    expected = {"a girl": {"style": ("anime", "photo")}, "a tower": {"style": ("anime",)}}
    assert read_grouped_prompts(one) == expected
    one.unlink()
    found = read_grouped_prompts(tmp_path)
    assert (list(found), found) == (["a girl", "a tower"], expected)
    (tmp_path / "photo.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"has a int in photo 1 where a prompt should be"):
        read_grouped_prompts(tmp_path)


def test_half_of_a_surrogate_pair_is_refused_where_it_is_read(tmp_path: Path) -> None:
    lines = '{"prompt": "a cat"}\n{"prompt": "a cat \\ud83d"}\n'
    with pytest.raises(ValueError, match=r"prompts\.jsonl' has half of a character, '\\ud83d', in line 2; write"):
        read_prompts(written(tmp_path, "prompts.jsonl", lines))
    assert read_prompts(written(tmp_path, "prompts.jsonl", '{"prompt": "a cat \\ud83d\\ude00"}')) == (
        "a cat \U0001f600",
    )
    with pytest.raises(ValueError, match="half of a character"):
        read_grouped_prompts(written(tmp_path, "list.json", '["a cat \\udc00"]'))
    rows = '{"prompt": "a cat", "kind": "\\ud83d"}'
    with pytest.raises(ValueError, match="half of a character"):
        read_grouped_prompts(written(tmp_path, "prompts.jsonl", rows), groups=("kind",))
