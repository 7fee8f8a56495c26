"""Prompts from datasets of the hub and from directories of tables."""

import fnmatch
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pyarrow as pa
import pytest
from huggingface_hub.errors import RepositoryNotFoundError
from pyarrow import parquet

from slingstone.prompts.files import read_prompts
from slingstone.prompts.sampler import PromptSampler

Hub = Callable[[str, str, dict[str, list[str]]], None]


def table(file: Path, prompts: list[str], column: str = "prompt") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table({"id": list(range(len(prompts))), column: prompts}), file)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub of datasets: `hub(name, revision, {path: prompts})` puts files there."""
    root = tmp_path / "hub"

    def download(name: str, repo_type: str, revision: str | None, allow_patterns: list[str]) -> str:
        assert repo_type == "dataset"
        branch = root / name / (revision or "main").replace("/", "%")
        if not (root / name).is_dir():
            raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)
        cache = tmp_path / "cache" / name / branch.name
        cache.mkdir(parents=True, exist_ok=True)
        for file in branch.rglob("*.parquet") if branch.is_dir() else ():
            path = str(file.relative_to(branch))
            if any(fnmatch.fnmatch(path, pattern) for pattern in allow_patterns):
                (cache / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, cache / path)
        return str(cache)

    def put(name: str, revision: str, files: dict[str, list[str]]) -> None:
        for path, prompts in files.items():
            table(root / name / revision.replace("/", "%") / path, prompts)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return put


def test_a_hub_dataset_gives_its_training_split_in_the_order_of_its_files(hub: Hub, tmp_path: Path) -> None:
    hub(
        "me/prompts",
        "main",
        {"data/train-1.parquet": ["c"], "data/train-0.parquet": ["a", "b"], "data/test-0.parquet": ["x"]},
    )
    assert read_prompts("hf://datasets/me/prompts") == ("a", "b", "c")
    assert not list((tmp_path / "cache").rglob("test-0.parquet")), "what is not read is not downloaded"
    assert read_prompts("hf://datasets/me/prompts/data/test") == ("x",)


def test_a_dataset_without_parquet_of_its_own_is_read_from_the_hubs_conversion(hub: Hub) -> None:
    hub("me/texts", "main", {})
    hub("me/texts", "refs/convert/parquet", {"default/train/0000.parquet": ["a"], "default/train/0001.parquet": ["b"]})
    assert read_prompts("hf://datasets/me/texts") == ("a", "b")


def test_a_revision_is_the_one_that_is_read(hub: Hub) -> None:
    hub("me/prompts", "main", {"all.parquet": ["new"]})
    hub("me/prompts", "v1", {"all.parquet": ["old"]})
    assert read_prompts("hf://datasets/me/prompts@v1") == ("old",)
    assert read_prompts("hf://datasets/me/prompts") == ("new",)


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("hf://me/prompts", r"is no dataset of the hub; write hf://datasets/owner/name"),
        ("hf://datasets/me/absent", r"cannot be had from the hub"),
        ("hf://datasets/me/prompts/nowhere", r"has no parquet files 'nowhere'"),
    ],
)
def test_what_is_wrong_with_a_dataset_is_said(hub: Hub, location: str, message: str) -> None:
    hub("me/prompts", "main", {"all.parquet": ["a"]})
    with pytest.raises(ValueError, match=f"prompts file '{location}' {message}"):
        read_prompts(location)


def test_a_directory_of_tables_is_a_dataset_whose_ranks_share_one_seeded_order(tmp_path: Path) -> None:
    for part in range(3):
        table(tmp_path / "data" / f"part-{part}.parquet", [f"prompt {part} {number}" for number in range(4)], "text")
    prompts = read_prompts(tmp_path, column="text")
    assert prompts == tuple(f"prompt {part} {number}" for part in range(3) for number in range(4))
    alone = PromptSampler(prompts, 4, seed=3)
    ranks = [PromptSampler(read_prompts(tmp_path, column="text"), 4, rank, 2, seed=3) for rank in range(2)]
    for _ in range(6):
        assert next(alone) == [prompt for rank in ranks for prompt in next(rank)]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"has no \.parquet"):
        read_prompts(tmp_path / "empty")
