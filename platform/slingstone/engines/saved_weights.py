"""A generator's weights out of a checkpoint, whatever engine wrote it and however many ranks; without that engine."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from slingstone.engines.shards import no_code, read

Weights = Literal["ema", "raw"]


def saved_weights(checkpoint: Path, kind: Weights, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Return the trained weights by name, in fp32 on the CPU.

    Args:
        checkpoint: directory of a published checkpoint.
        kind: the average, or the weights as they were stepped.
        shapes: of the trained weights; shards do not say theirs.

    Raises:
        ValueError: if the checkpoint lacks them, or they are another generator's.
    """
    found = _average(checkpoint, shapes) if kind == "ema" else _raw(checkpoint / "generator")
    wrong = {
        name for name in shapes.keys() | found.keys() if name not in found or found[name].shape != shapes.get(name)
    }
    if wrong:
        raise ValueError(
            f"checkpoint {str(checkpoint)!r}: {len(wrong)} weights are missing, added or of other shape, the first is "
            f"{min(wrong)}; export it with the configuration that it was trained with"
        )
    return {name: weight.float() for name, weight in found.items()}


def _average(checkpoint: Path, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    if (checkpoint / "ema.pt").is_file():
        return read(checkpoint / "ema.pt")
    shards = [read(file) for file in sorted(checkpoint.glob("ema_*.pt"), key=lambda file: int(file.stem[4:]))]
    if not shards:
        raise ValueError(f"checkpoint {str(checkpoint)!r} has no average; give a checkpoint of a run")
    # ZeRO-3 cuts each weight into equal parts, the last of them filled up.
    return {
        name: torch.cat([shard[name].flatten() for shard in shards])[: shapes[name].numel()].view(shapes[name])
        for name in shards[0].keys() & shapes.keys()
    }


def _raw(engine: Path) -> dict[str, Tensor]:
    if (engine / "torch_engine.pt").is_file():
        return read(engine / "torch_engine.pt")["module"]
    whole = engine / "engine" / "mp_rank_00_model_states.pt"
    if whole.is_file():
        return read(whole)["module"]
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    try:
        with no_code():
            found: Any = get_fp32_state_dict_from_zero_checkpoint(str(engine), tag="engine")
        return found
    except (OSError, ValueError) as error:
        raise ValueError(f"checkpoint {str(engine)!r} has no generator that can be read: {error}") from error
