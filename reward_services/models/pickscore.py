"""PickScore v1: CLIP ViT-H/14 trained on Pick-a-Pic preferences.

Source: Kirstain et al., arXiv:2305.01569, eq. 1; weights yuvalkirstain/PickScore_v1.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTokenizer

from reward_services.models.checkpoints import cast_towers, fetch, local_path, path_or_hub_id, read_tokenizer
from reward_services.models.clip import PUBLISHED_TOKENIZER, TOKENIZER_FILES, ClipSimilarity, tower_configs, unchanged
from reward_services.preprocess import pickscore_preprocess, square_side
from reward_services.spec import PreprocessMode


class PickScore(nn.Module):
    """`exp(logit_scale) * cos(image, text)`; published weights give 18 to 24."""

    def __init__(self, model: CLIPModel, tokenizer: CLIPTokenizer, preprocess: PreprocessMode = "exact"):
        super().__init__()
        self.similarity = ClipSimilarity(model, tokenizer, unchanged)
        vision, _ = tower_configs(model)
        self.preprocess = pickscore_preprocess(square_side(vision.image_size, "vision_config.image_size"), preprocess)

    @classmethod
    def load(
        cls,
        checkpoint: str | Path,
        tokenizer: str | None = None,
        preprocess: PreprocessMode = "exact",
        dtype: torch.dtype = torch.float32,
    ) -> "PickScore":
        """Read a transformers CLIP directory or hub id.

        Raises:
            ValueError: the checkpoint is absent, truncated, or not a whole CLIP model.
        """
        model = _read_clip(checkpoint)
        beside = local_path(checkpoint)
        has_tokenizer = beside is None or any((beside / name).is_file() for name in TOKENIZER_FILES)
        source = tokenizer or (str(checkpoint) if has_tokenizer else PUBLISHED_TOKENIZER)
        cast_towers(model, dtype, keep=lambda name: name == "logit_scale")
        return cls(model, read_tokenizer(CLIPTokenizer, source), preprocess)

    def score(self, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]) -> Float[Tensor, " batch"]:
        """Return one score a picture for RGB pictures in [0, 1]."""
        return self.similarity.model.logit_scale.exp() * self.similarity(self.preprocess(images), prompts)


def _read_clip(checkpoint: str | Path) -> CLIPModel:
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
