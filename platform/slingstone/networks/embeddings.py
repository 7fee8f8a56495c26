"""Prompt embeddings on disk, so that text encoders work once and then leave the accelerator."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase


class EmbeddingStore:
    """A file a prompt, `<directory>/<fingerprint>/<2 digits>/<prompt's hash>.safetensors`.

    Any number of processes may read and write the same store: a file appears whole or not at all.

    Args:
        directory: of all encoders' embeddings.
        fingerprint: of the encoder, see `fingerprint`; embeddings of another one are never read.
    """

    def __init__(self, directory: Path, fingerprint: str):
        self.directory = directory / fingerprint

    def __contains__(self, prompt: str) -> bool:
        return self._file(prompt).is_file()

    def read(self, prompt: str) -> dict[str, Tensor]:
        """Return the tensors of a prompt that is there."""
        return load_file(self._file(prompt))

    def write(self, prompt: str, row: dict[str, Tensor]) -> None:
        """Keep the tensors of a prompt."""
        file = self._file(prompt)
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(f".{os.getpid()}")
        save_file({name: tensor.contiguous() for name, tensor in row.items()}, unfinished)
        unfinished.replace(file)

    def _file(self, prompt: str) -> Path:
        name = hashlib.sha256(prompt.encode()).hexdigest()
        return self.directory / name[:2] / f"{name[2:]}.safetensors"


def fingerprint(encoder: nn.Module) -> str:
    """Return a hash of all that an encoding depends on: the encoder's class, numbers, tokenizers and weights."""
    found = hashlib.sha256(type(encoder).__name__.encode())
    for name, value in sorted(vars(encoder).items()):
        if isinstance(value, bool | int | float | str) and name not in ("training", "cache_prompts"):
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
