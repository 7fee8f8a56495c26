"""Reading a CLIP model in the layout in which transformers publishes it: a directory or a hub id."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import CLIPModel, CLIPTokenizer

from reward_services.models.checkpoints import fetch, local_path, path_or_hub_id, read_tokenizer
from reward_services.models.clip import TOKENIZER_FILES


def read_clip(checkpoint: str | Path) -> CLIPModel:
    """Return the CLIP model of a directory or hub id, in float32.

    Raises:
        ValueError: it is absent, truncated, or not a whole CLIP model.
    """
    fetch(checkpoint, "config.json")
    try:
        # With output_loading_info it returns a pair, which its annotation does not say.
        loaded: Any = CLIPModel.from_pretrained(
            path_or_hub_id(checkpoint), dtype=torch.float32, output_loading_info=True
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"checkpoint {str(checkpoint)!r} cannot be read as a CLIP model; it is incomplete, truncated or of another "
            f"architecture, fetch it again ({reason})"
        ) from error
    model, report = loaded
    unknown = [name for name in report["unexpected_keys"] if not name.endswith("position_ids")]
    if report["missing_keys"] or unknown:
        raise ValueError(
            f"checkpoint {str(checkpoint)!r} is not a whole CLIP model: {len(report['missing_keys'])} weights missing "
            f"{sorted(report['missing_keys'])[:3]}, {len(unknown)} unknown {sorted(unknown)[:3]}"
        )
    return model


def read_clip_tokenizer(checkpoint: str | Path, tokenizer: str | None, published: str) -> CLIPTokenizer:
    """Return the tokenizer that is asked for, else the one beside the weights, else the published one.

    Raises:
        ValueError: there is none.
    """
    beside = local_path(checkpoint)
    has_tokenizer = beside is None or any((beside / name).is_file() for name in TOKENIZER_FILES)
    return read_tokenizer(CLIPTokenizer, tokenizer or (str(checkpoint) if has_tokenizer else published))
