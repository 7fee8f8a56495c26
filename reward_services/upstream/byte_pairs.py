"""OpenAI's byte-pair tokenizer, as clip and open_clip contain it, with a checkpoint's own vocabulary."""

import gzip
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any


def own_vocabulary(simple_tokenizer: Any, directory: Path) -> Any:
    """Return upstream's `SimpleTokenizer` with the vocabulary that lies beside a checkpoint.

    Args:
        simple_tokenizer: the class of the upstream package.
        directory: with `tokenizer.json`, as transformers writes it.
    """
    described = json.loads((directory / "tokenizer.json").read_text())["model"]
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in described["merges"]]
    with TemporaryDirectory() as scratch:
        path = Path(scratch, "bpe.txt.gz")
        path.write_bytes(gzip.compress("\n".join(["#version: 0.2", *merges]).encode()))
        tokenizer = simple_tokenizer(bpe_path=str(path))
    # Upstream's own special tokens come last, under names of its own.
    if len(tokenizer.encoder) != len(described["vocab"]) or any(
        described["vocab"].get(token) not in (index, None) for token, index in tokenizer.encoder.items()
    ):
        raise ValueError(f"tokenizer {str(directory)!r} is not in the order of OpenAI's: upstream cannot express it")
    return tokenizer
