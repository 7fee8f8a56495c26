"""CLIP models in the layout in which transformers publishes them: a directory or a hub id."""

from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from transformers import CLIPModel, CLIPTokenizer

from reward_services.models.checkpoints import fetch, path_or_hub_id, read_tokenizer
from reward_services.models.clip import ClipReward
from reward_services.protocol import in_a_line


def read_clip(checkpoint: str | Path) -> CLIPModel:
    """Return the CLIP model of a directory or hub id, in float32; ValueError if it is none, or not whole."""
    fetch(checkpoint, "config.json")
    try:
        # With output_loading_info it returns a pair, which its annotation does not say.
        loaded: Any = CLIPModel.from_pretrained(
            path_or_hub_id(checkpoint), dtype=torch.float32, output_loading_info=True
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise ValueError(
            f"checkpoint {str(checkpoint)!r} cannot be read as a CLIP model; it is incomplete, truncated or of another "
            f"architecture, fetch it again ({in_a_line(error)})"
        ) from error
    model, report = loaded
    unknown = [name for name in report["unexpected_keys"] if not name.endswith("position_ids")]
    if report["missing_keys"] or unknown:
        raise ValueError(
            f"checkpoint {str(checkpoint)!r} is not a whole CLIP model: {len(report['missing_keys'])} weights missing "
            f"{sorted(report['missing_keys'])[:3]}, {len(unknown)} unknown {sorted(unknown)[:3]}"
        )
    return model


class ClipDirectoryReward(ClipReward):
    """A reward that is published as a transformers CLIP model; abstract."""

    published_tokenizer: ClassVar[str]
    """Hub id, taken where a directory holds none."""

    @classmethod
    def read(cls, checkpoint: str | Path, tokenizer: str | None) -> tuple[CLIPModel, CLIPTokenizer]:
        """Read a transformers CLIP directory or hub id."""
        model = read_clip(checkpoint)
        return model, read_tokenizer(CLIPTokenizer, tokenizer, checkpoint, cls.published_tokenizer)
