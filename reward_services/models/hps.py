"""Human Preference Score v2 and v2.1: an open_clip ViT-H/14 trained on HPD v2.

Source: Wu et al., arXiv:2306.09341; weights xswu/HPSv2.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from reward_services.models.checkpoints import (
    cast_towers,
    load_strict,
    read_state_dict,
    read_tokenizer,
    weights_file,
)
from reward_services.models.clip import (
    PUBLISHED_TOKENIZER,
    TOKENIZER_FILES,
    ClipSimilarity,
    open_clip_text,
    tower_configs,
)
from reward_services.models.layouts import count_blocks, open_clip_to_transformers
from reward_services.preprocess import hps_preprocess, square_side
from reward_services.spec import PreprocessMode

PUBLISHED_FILE = "HPS_v2.1_compressed.pt"
GEOMETRY_FILE = "open_clip_config.json"
# open_clip's head widths that a state dict does not tell; all other towers have 64.
_VISION_HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104}


class HPS(nn.Module):
    """`cos(image, text)` by v2.1; published weights give .14 to .34; tables show 100 times that."""

    published_file: ClassVar[str] = PUBLISHED_FILE

    def __init__(self, model: CLIPModel, tokenizer: CLIPTokenizer, preprocess: PreprocessMode = "exact"):
        super().__init__()
        self.similarity = ClipSimilarity(model, tokenizer, open_clip_text)
        vision, _ = tower_configs(model)
        self.preprocess = hps_preprocess(square_side(vision.image_size, "vision_config.image_size"), preprocess)

    @classmethod
    def load(
        cls,
        checkpoint: str | Path,
        tokenizer: str | None = None,
        preprocess: PreprocessMode = "exact",
        dtype: torch.dtype = torch.float32,
    ) -> "HPS":
        """Read a `.pt` file, a directory with the published one or one other, or `owner/repository[/file]` on the hub.

        The geometry comes from the state dict, or from an `open_clip_config.json` beside it where heads differ from
        open_clip's own towers. The tokenizer lies beside the weights or is the published one.

        Raises:
            ValueError: the checkpoint is absent, truncated, or not an open_clip CLIP model.
        """
        path = weights_file(checkpoint, cls.published_file)
        state = open_clip_to_transformers(read_state_dict(path))
        sidecar = path.with_name(GEOMETRY_FILE)
        described = json.loads(sidecar.read_text())["model_cfg"] if sidecar.is_file() else {}
        model = CLIPModel(_geometry(state, described, path))
        load_strict(model, state, str(path))
        beside = any(path.with_name(name).is_file() for name in TOKENIZER_FILES)
        source = tokenizer or (str(path.parent) if beside else PUBLISHED_TOKENIZER)
        cast_towers(model, dtype, keep=lambda name: name == "logit_scale")
        return cls(model, read_tokenizer(CLIPTokenizer, source), preprocess)

    def score(self, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]) -> Float[Tensor, " batch"]:
        """Return one score a picture for RGB pictures in [0, 1]."""
        return self.similarity(self.preprocess(images), prompts)


class HPSv2(HPS):
    """The same by v2, whose weights alone differ; published ones give .23 to .29."""

    published_file = "HPS_v2_compressed.pt"


def _geometry(state: Mapping[str, Tensor], described: Mapping[str, Any], path: Path) -> CLIPConfig:
    try:
        patches = state["vision_model.embeddings.patch_embedding.weight"]
        positions = state["vision_model.embeddings.position_embedding.weight"]
        tokens = state["text_model.embeddings.token_embedding.weight"]
        context = state["text_model.embeddings.position_embedding.weight"]
        vision_mlp = state["vision_model.encoder.layers.0.mlp.fc1.weight"]
        text_mlp = state["text_model.encoder.layers.0.mlp.fc1.weight"]
        projection = state["visual_projection.weight"]
    except KeyError as error:
        raise ValueError(f"checkpoint {str(path)!r} is not a whole CLIP model: it lacks {error}") from error
    width, patch, text_width = patches.shape[0], patches.shape[-1], tokens.shape[1]
    head_width = described.get("vision_cfg", {}).get("head_width", _VISION_HEAD_WIDTHS.get(width, 64))
    activation = "quick_gelu" if described.get("quick_gelu", False) else "gelu"
    return CLIPConfig(
        projection_dim=projection.shape[0],
        vision_config={
            "hidden_size": width,
            "intermediate_size": vision_mlp.shape[0],
            "num_hidden_layers": count_blocks(state, "vision_model.encoder.layers"),
            "num_attention_heads": max(1, width // head_width),
            "image_size": round((positions.shape[0] - 1) ** 0.5) * patch,
            "patch_size": patch,
            "hidden_act": activation,
            "projection_dim": projection.shape[0],
        },
        text_config={
            "hidden_size": text_width,
            "intermediate_size": text_mlp.shape[0],
            "num_hidden_layers": count_blocks(state, "text_model.encoder.layers"),
            "num_attention_heads": described.get("text_cfg", {}).get("heads", max(1, text_width // 64)),
            "vocab_size": tokens.shape[0],
            "max_position_embeddings": context.shape[0],
            "hidden_act": activation,
            "projection_dim": projection.shape[0],
            "eos_token_id": 2,  # read the embedding at the highest token id, as open_clip does
        },
    )
