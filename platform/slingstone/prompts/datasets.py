"""Datasets of the Hugging Face hub, or directories of tables, as lists of files. Imports no torch.

The hub serves every dataset as parquet: written so by its owner, or converted on the branch `refs/convert/parquet`. So
`huggingface_hub`, which the networks need anyway, and pyarrow read them all; the package `datasets` would add a cache
and a format of its own, and nothing that a column of prompts needs.
"""

import re
from pathlib import Path

HUB = re.compile(r"hf://datasets/(?P<name>[\w-][\w.-]*/[\w.-]+)(@(?P<revision>[^/]+))?(/(?P<path>.+))?")
CONVERTED = "refs/convert/parquet"
TABLES = (".parquet", ".jsonl", ".csv", ".tsv")
DEFAULT = "train"
"""The split that is read where files are named after splits and no path is given."""


def is_dataset(location: str) -> bool:
    """Return whether prompts lie in many files: on the hub (`hf://datasets/owner/name`), or in a directory."""
    return location.startswith("hf://") or Path(location).is_dir()


def dataset_files(location: str) -> list[Path]:
    """Return a dataset's tables in the order of their paths, of one kind and one split; downloads what is missing.

    Args:
        location: a directory; or `hf://datasets/owner/name`, with a revision after `@`, and with a path in the
            repository (or the beginning of one) after that, such as `hf://datasets/owner/name@main/data/validation`.

    Raises:
        ValueError: if it has no table, or the hub does not give it.
    """
    if not location.startswith("hf://"):
        return _tables(Path(location), "")
    named = HUB.fullmatch(location)
    if named is None:
        raise ValueError("is no dataset of the hub; write hf://datasets/owner/name[@revision][/path]")
    path, revision = named["path"] or "", named["revision"]
    asked = [f"{path}*.parquet"] if path else [f"*{DEFAULT}*.parquet", "*.parquet"]
    for branch in [revision] if revision else [None, CONVERTED]:
        for pattern in asked:
            directory = _downloaded(named["name"], branch, pattern)
            if any(directory.rglob("*.parquet")):
                return _tables(directory, path)
    raise ValueError(
        f"has no parquet files {path!r}; look at the dataset's files, and give the beginning of their paths"
    )


def _tables(directory: Path, path: str) -> list[Path]:
    for kind in TABLES:
        named = {str(file.relative_to(directory)): file for file in directory.rglob(f"*{kind}")}
        there = {name: file for name, file in named.items() if name.startswith(path) and not name.startswith(".")}
        split = {name: file for name, file in there.items() if DEFAULT in name}
        if found := (split if split and not path else there):
            return [found[name] for name in sorted(found)]
    raise ValueError(f"has no {', '.join(TABLES)} file; give a directory with tables of prompts")


def _downloaded(name: str, revision: str | None, pattern: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        return Path(snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=[pattern]))
    except RevisionNotFoundError as error:
        raise ValueError(f"has no revision {revision}, where its tables would be: {_line(error)}") from error
    # Its kinds are those of whatever transport the hub's client uses.
    except Exception as error:
        raise ValueError(f"cannot be had from the hub: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
