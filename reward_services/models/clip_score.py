"""CLIP score: the cosine of a picture and its prompt by OpenAI's CLIP.

Source: Hessel et al., arXiv:2104.08718, without their factor 2.5 and their clamp at 0, which would stop the gradient.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTokenizer

from reward_services.models.checkpoints import cast_towers
from reward_services.models.clip import ClipSimilarity, open_clip_text, tower_configs
from reward_services.models.clip_directory import read_clip, read_clip_tokenizer
from reward_services.preprocess import imagereward_preprocess, square_side
from reward_services.spec import PreprocessMode

PUBLISHED = "openai/clip-vit-large-patch14"


class ClipScore(nn.Module):
    """`cos(image, text)`; published weights give .2 to .35; tables show 100 times that."""

    def __init__(self, model: CLIPModel, tokenizer: CLIPTokenizer, preprocess: PreprocessMode = "exact"):
        super().__init__()
        # OpenAI's tokenizer cleans prompts as open_clip's, which was copied from it.
        self.similarity = ClipSimilarity(model, tokenizer, open_clip_text)
        vision, _ = tower_configs(model)
        # The rule of OpenAI's clip package, which ImageReward took over.
        self.preprocess = imagereward_preprocess(square_side(vision.image_size, "vision_config.image_size"), preprocess)

    @classmethod
    def load(
        cls,
        checkpoint: str | Path,
        tokenizer: str | None = None,
        preprocess: PreprocessMode = "exact",
        dtype: torch.dtype = torch.float32,
    ) -> "ClipScore":
        """Read a transformers CLIP directory or hub id.

        Raises:
            ValueError: the checkpoint is absent, truncated, or not a whole CLIP model.
        """
        model = read_clip(checkpoint)
        cast_towers(model, dtype, keep=lambda name: name == "logit_scale")
        return cls(model, read_clip_tokenizer(checkpoint, tokenizer, PUBLISHED), preprocess)

    def score(self, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]) -> Float[Tensor, " batch"]:
        """Return one score a picture for RGB pictures in [0, 1]."""
        return self.similarity(self.preprocess(images), prompts)
