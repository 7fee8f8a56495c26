"""Checkpoint files as trees of plain values and tensors: copied to the host, written durably, read without pickles."""

import copy
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_FORCED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"

Files = dict[str, Any]
"""By path in a checkpoint: what `torch.save` is to write there."""


def copied(tree: Any) -> Any:
    """Return the tree with every tensor copied to the host, so that training may go on while it is written."""
    if isinstance(tree, Tensor):
        return tree.detach().to("cpu", copy=True)
    if isinstance(tree, dict):
        # By the plain constructor: an OrderedDict's metadata is no state, and reads back as a dict as well.
        return {key: copied(value) for key, value in tree.items()}
    if isinstance(tree, torch.Size):
        return tree
    if isinstance(tree, list | tuple):
        return type(tree)(copied(value) for value in tree)
    return copy.deepcopy(tree)


def read(path: Path) -> Any:
    """Read one tree; nothing that it holds is executed.

    Raises:
        DamagedCheckpoint: it cannot be read, or holds more than plain values and tensors.
    """
    try:
        with no_code():
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, ValueError, TypeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise DamagedCheckpoint(f"{path.parent.name}/{path.name} cannot be read: {reason}") from error


@contextmanager
def no_code() -> Iterator[None]:
    """Let `torch.load` read what checkpoints hold and nothing that runs, also where a library would let it."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    before = os.environ.get(_FORCED)
    os.environ[_FORCED] = "1"
    try:
        # Classes without code of their own, which DeepSpeed's states name.
        with torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address]):
            yield
    finally:
        if before is None:
            del os.environ[_FORCED]
        else:
            os.environ[_FORCED] = before


class DamagedCheckpoint(ValueError):
    """A checkpoint that is not what was published; the message names it, and what is wrong with it."""
