"""PickScore v1: CLIP ViT-H/14 trained on Pick-a-Pic preferences.

Source: Kirstain et al., arXiv:2305.01569, eq. 1; weights yuvalkirstain/PickScore_v1.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTokenizer

from reward_services.models.checkpoints import cast_towers
from reward_services.models.clip import PUBLISHED_TOKENIZER, ClipSimilarity, tower_configs, unchanged
from reward_services.models.clip_directory import read_clip, read_clip_tokenizer
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
        model = read_clip(checkpoint)
        cast_towers(model, dtype, keep=lambda name: name == "logit_scale")
        return cls(model, read_clip_tokenizer(checkpoint, tokenizer, PUBLISHED_TOKENIZER), preprocess)

    def score(self, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]) -> Float[Tensor, " batch"]:
        """Return one score a picture for RGB pictures in [0, 1]."""
        return self.similarity.model.logit_scale.exp() * self.similarity(self.preprocess(images), prompts)
