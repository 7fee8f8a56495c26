"""Finding and reading published checkpoint files: safely, and with messages that name the file."""

import pickle
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HFValidationError
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from reward_services.contents import local_path
from reward_services.protocol import in_a_line
from reward_services.spec import PreprocessMode

Tokenizer = TypeVar("Tokenizer", bound=PreTrainedTokenizerBase)
Reward = TypeVar("Reward", bound="PublishedReward")

_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt")


def path_or_hub_id(checkpoint: str | Path) -> str:
    """Return what transformers' `from_pretrained` takes."""
    return str(local_path(checkpoint) or checkpoint)


def fetch(checkpoint: str | Path, filename: str) -> Path:
    """Return `filename` of a checkpoint directory or hub id; ValueError if there is none, here or on the hub."""
    found = local_path(checkpoint)
    if found is not None:
        path = found / filename
        if not path.is_file():
            raise ValueError(f"checkpoint {str(checkpoint)!r} has no file {filename!r}: give the published directory")
        return path
    try:
        return Path(hf_hub_download(str(checkpoint), filename))
    except (HFValidationError, OSError) as error:
        raise ValueError(
            f"checkpoint {str(checkpoint)!r} is neither a directory here nor a hub id that can be read: {error}"
        ) from error


def weights_file(checkpoint: str | Path, published: str) -> Path:
    """Return the file of weights that a checkpoint means; ValueError if there is none, or several.

    A checkpoint is a file; a directory with the published file or one other of its suffix; or `owner/repository`, with
    or without `/file`, on the hub.
    """
    suffix = Path(published).suffix
    found = local_path(checkpoint)
    if found is None and str(checkpoint).endswith(suffix) and str(checkpoint).count("/") == 2:
        repository, _, filename = str(checkpoint).rpartition("/")
        return fetch(repository, filename)
    if found is None or (found / published).is_file():
        return fetch(checkpoint, published)
    if found.is_file():
        return found
    files = sorted(found.glob(f"*{suffix}"))
    if len(files) != 1:
        raise ValueError(f"checkpoint {str(checkpoint)!r} holds {len(files)} {suffix} files: name the one to load")
    return files[0]


def read_tokenizer(
    kind: type[Tokenizer], given: str | None, checkpoint: str | Path, published: str, download: bool = True
) -> Tokenizer:
    """Return the tokenizer that is given, else the one beside the weights, else the published one; else ValueError."""
    beside = local_path(checkpoint)
    has_tokenizer = beside is None or any((beside / name).is_file() for name in _TOKENIZER_FILES)
    source = given or (str(checkpoint) if has_tokenizer else published)
    wrong = "it is neither a directory here nor a hub id that can be read"
    try:
        tokenizer = kind.from_pretrained(path_or_hub_id(source), local_files_only=not download)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"tokenizer {source!r} cannot be read: {wrong}") from error
    # transformers 5 returns one that knows its special tokens only, where there is none.
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise ValueError(f"tokenizer {source!r} has no vocabulary: {wrong}")
    return tokenizer


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a published `.pt` file, bare or under the key `state_dict`, and run no code of it.

    Raises:
        ValueError: the file is truncated, or holds anything but tensors.
    """
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, KeyError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"checkpoint {str(path)!r} ({path.stat().st_size} bytes) cannot be read as tensors; it is truncated or not "
            f"a checkpoint, fetch it again ({in_a_line(error)})"
        ) from error
    if isinstance(payload, Mapping) and isinstance(payload.get("state_dict"), Mapping):
        payload = payload["state_dict"]
    if not isinstance(payload, Mapping) or not all(isinstance(value, Tensor) for value in payload.values()):
        raise ValueError(f"checkpoint {str(path)!r} holds a {type(payload).__name__}, not a state dict of tensors")
    return dict(payload)


def load_strict(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load a state dict; if not every name and shape matches the module's, a ValueError shows the first few."""
    own = module.state_dict()
    problems = {
        "missing": [name for name in own if name not in state],
        "unknown": [name for name in state if name not in own],
        "of another shape": [
            f"{name} {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
            for name, tensor in own.items()
            if name in state and state[name].shape != tensor.shape
        ],
    }
    found = [
        f"{len(names)} {kind}: {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        for kind, names in problems.items()
        if names
    ]
    if found:
        raise ValueError(f"checkpoint {source!r} does not fit {type(module).__name__}: {'; '.join(found)}")
    module.load_state_dict(state)


class PublishedReward(nn.Module):
    """A reward that is read from a published checkpoint; abstract.

    A subclass is made from what its `read` returns and the mode of its preprocessing. Its heads are called `mlp`.
    """

    @classmethod
    def load(
        cls: type[Reward],
        checkpoint: str | Path,
        tokenizer: str | None = None,
        preprocess: PreprocessMode = "exact",
        dtype: torch.dtype = torch.float32,
    ) -> Reward:
        """Read a checkpoint in any of the forms of `read`; the arguments are fields of `RewardSpec`.

        Raises:
            ValueError: the checkpoint is absent, truncated, or of another architecture.
        """
        reward = cls(*cls.read(checkpoint, tokenizer), preprocess)
        for name, tensor in (*reward.named_parameters(), *reward.named_buffers()):
            if tensor.is_floating_point() and not name.startswith("mlp.") and not name.endswith("logit_scale"):
                tensor.data = tensor.data.to(dtype)
        return reward

    @classmethod
    @abstractmethod
    def read(cls, checkpoint: str | Path, tokenizer: str | None) -> tuple[Any, ...]:
        """Return the parts of a checkpoint, in float32 and in the order in which the class takes them."""
        ...
