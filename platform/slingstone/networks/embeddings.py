"""Prompt embeddings on disk, so that text encoders work once and then leave the accelerator."""

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from slingstone.atomic import replacing
from slingstone.networks.protocol import Condition

SHARD_PROMPTS = 1024
"""Prompts of a file; its embeddings take 0.3 GiB for SDXL in bf16."""
PASS_PROMPTS = 64
"""Prompts that are encoded at a time."""
OPEN_SHARDS = 64
ROUNDED = ("text", "pooled")
"""The embeddings of a condition; the rest are masks and sizes in pixels."""
Encode = Callable[[Sequence[str]], Condition]


class EmbeddingStore:
    """The embeddings of a list of prompts, in shards of safetensors that are read row by row.

    `<directory>/<fingerprint>-<dtype>/<hash of the shard's prompts>.safetensors`: other runs with the same prompts find
    them. Which prompts share a shard, and so the bits of an encoding, depends on the list alone. Any number of
    processes may fill one store: a shard appears whole or not at all.

    Args:
        directory: of all encoders' embeddings.
        encoder: see `fingerprint`; embeddings of another one are never read.
        dtype: of the stored embeddings; masks and sizes stay as they are.
        prompts: all that may be asked for, in an order that does not change.
    """

    def __init__(self, directory: Path, encoder: str, dtype: torch.dtype, prompts: Sequence[str]):
        self._directory = directory / f"{encoder}-{str(dtype).removeprefix('torch.')}"
        self._dtype = dtype
        self._prompts = list(dict.fromkeys(prompts))
        self._rows = {prompt: row for row, prompt in enumerate(self._prompts)}
        self._open = lru_cache(OPEN_SHARDS)(self._opened)

    def __len__(self) -> int:
        """Return the number of distinct prompts."""
        return len(self._prompts)

    def fill(self, encode: Encode, rank: int = 0, world: int = 1) -> None:
        """Encode what is missing of this rank's shards."""
        for shard in range(rank, -(-len(self) // SHARD_PROMPTS), world):
            file = self._file(shard)
            if not file.is_file():
                prompts = self._of(shard)
                parts = [
                    encode(prompts[start : start + PASS_PROMPTS]) for start in range(0, len(prompts), PASS_PROMPTS)
                ]
                rows = {name: torch.cat([self._stored(name, part[name]) for part in parts]) for name in parts[0]}
                with replacing(file) as path:
                    save_file(rows, path)

    def read(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Return the tensors of prompts of the list, a row each, in host memory.

        Raises:
            KeyError: a prompt is not in the list.
        """
        rows = [self._read(*divmod(self._rows[prompt], SHARD_PROMPTS)) for prompt in prompts]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def _read(self, shard: int, row: int) -> dict[str, Tensor]:
        file = self._open(shard)
        return {name: file.get_slice(name)[row : row + 1] for name in file.keys()}  # noqa: SIM118  (no mapping)

    def _opened(self, shard: int) -> Any:
        return safe_open(self._file(shard), "pt")

    def _of(self, shard: int) -> list[str]:
        return self._prompts[shard * SHARD_PROMPTS : (shard + 1) * SHARD_PROMPTS]

    def _file(self, shard: int) -> Path:
        name = hashlib.sha256("\0".join(self._of(shard)).encode()).hexdigest()[:32]
        return self._directory / f"{name}.safetensors"

    def _stored(self, name: str, rows: Tensor) -> Tensor:
        return (rows.to(self._dtype) if name in ROUNDED else rows).cpu().contiguous()


def stored_bytes(condition: Condition, dtype: torch.dtype) -> int:
    """Return what a store takes for a condition, given one of a prompt."""
    return sum(
        value.numel() * (dtype.itemsize if name in ROUNDED else value.itemsize) for name, value in condition.items()
    )


def fingerprint(encoder: nn.Module) -> str:
    """Return a hash of all that an encoding depends on: the encoder's class, numbers, tokenizers and weights."""
    found = hashlib.sha256(type(encoder).__name__.encode())
    for name, value in sorted(vars(encoder).items()):
        if isinstance(value, bool | int | float | str) and name != "training":
            found.update(f"{name}={value!r};".encode())
        tokenizers: Any = [
            item
            for item in (value if isinstance(value, tuple) else (value,))
            if isinstance(item, PreTrainedTokenizerBase)
        ]
        for tokenizer in tokenizers:
            found.update(f"{name}:{tokenizer.model_max_length}:{tokenizer.pad_token_id};".encode())
            rules = json.loads(tokenizer.backend_tokenizer.to_str())
            # What the last call asked for.
            rules |= {"padding": None, "truncation": None}
            found.update(json.dumps(rules, sort_keys=True).encode())
    for name, weight in encoder.state_dict().items():
        found.update(f"{name}{tuple(weight.shape)}{weight.dtype};".encode())
        found.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()[:32]
