"""Pictures and vocabularies as the upstream packages take them."""

import gzip
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor


def to_pil(image: Float[Tensor, "1 3 height width"]) -> Image.Image:
    """Return what a saved PNG of an RGB picture in [0, 1] holds."""
    levels = (image[0].detach().clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    return Image.fromarray(np.ascontiguousarray(levels.cpu().numpy()))


def own_vocabulary(simple_tokenizer: Any, directory: Path) -> Any:
    """Return OpenAI's byte-pair tokenizer, of which each package has a copy, with a `tokenizer.json`'s vocabulary."""
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
