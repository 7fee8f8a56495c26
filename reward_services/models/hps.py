"""Human Preference Score v2 and v2.1: an open_clip ViT-H/14 trained on HPD v2.

Source: Wu et al., arXiv:2306.09341; weights xswu/HPSv2.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from reward_services.models.checkpoints import load_strict, read_state_dict, read_tokenizer, weights_file
from reward_services.models.clip import PUBLISHED_TOKENIZER, ClipReward, open_clip_text
from reward_services.models.layouts import count_blocks, open_clip_to_transformers
from reward_services.preprocess import hps_preprocess

PUBLISHED_FILE = "HPS_v2.1_compressed.pt"
GEOMETRY_FILE = "open_clip_config.json"
# open_clip's head widths of the towers that exist with one activation, gelu; all other towers have 64.
_VISION_HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104}


class HPS(ClipReward):
    """`cos(image, text)` by v2.1; published weights give .14 to .34; tables show 100 times that."""

    published_file: ClassVar[str] = PUBLISHED_FILE
    rule = hps_preprocess
    clean = open_clip_text

    @classmethod
    def read(cls, checkpoint: str | Path, tokenizer: str | None) -> tuple[CLIPModel, CLIPTokenizer]:
        """Read a `.pt` file, a directory with the published one or one other, or `owner/repository[/file]` on the hub.

        The geometry comes from the state dict, or from an `open_clip_config.json` beside it. Only of ViT-H, ViT-g and
        ViT-bigG the state dict tells all: towers of other widths exist with gelu and with quick_gelu.
        """
        path = weights_file(checkpoint, cls.published_file)
        state = open_clip_to_transformers(read_state_dict(path))
        sidecar = path.with_name(GEOMETRY_FILE)
        described = json.loads(sidecar.read_text())["model_cfg"] if sidecar.is_file() else {}
        model = CLIPModel(_geometry(state, described, path))
        load_strict(model, state, str(path))
        return model, read_tokenizer(CLIPTokenizer, tokenizer, path.parent, PUBLISHED_TOKENIZER)


class HPSv2(HPS):
    """The same by v2, whose weights alone differ; published ones give .23 to .29."""

    published_file = "HPS_v2_compressed.pt"


def _geometry(state: Mapping[str, Tensor], described: Mapping[str, Any], path: Path) -> CLIPConfig:
    def shape(module: str) -> torch.Size:
        try:
            return state[f"{module}.weight"].shape
        except KeyError as error:
            raise ValueError(f"checkpoint {str(path)!r} is not a whole CLIP model: it lacks {error}") from error

    def tower(name: str, width: int, heads: int) -> dict[str, Any]:
        return {
            "hidden_size": width,
            "intermediate_size": shape(f"{name}.encoder.layers.0.mlp.fc1")[0],
            "num_hidden_layers": count_blocks(state, f"{name}.encoder.layers"),
            "num_attention_heads": heads,
            "hidden_act": "quick_gelu" if described.get("quick_gelu", False) else "gelu",
            "projection_dim": projection,
        }

    projection = shape("visual_projection")[0]
    width, _, _, patch = shape("vision_model.embeddings.patch_embedding")
    words, text_width = shape("text_model.embeddings.token_embedding")
    if not described and width not in _VISION_HEAD_WIDTHS:
        raise ValueError(
            f"checkpoint {str(path)!r} has a picture tower of width {width}, whose weights do not tell its activation "
            f"(gelu or quick_gelu) and heads; put open_clip's {GEOMETRY_FILE} beside it"
        )
    head_width = described.get("vision_cfg", {}).get("head_width", _VISION_HEAD_WIDTHS.get(width, 64))
    text_heads = described.get("text_cfg", {}).get("heads", max(1, text_width // 64))
    positions = shape("vision_model.embeddings.position_embedding")[0] - 1
    return CLIPConfig(
        projection_dim=projection,
        vision_config=tower("vision_model", width, max(1, width // head_width))
        | {"image_size": round(positions**0.5) * patch, "patch_size": patch},
        text_config=tower("text_model", text_width, text_heads)
        | {
            "vocab_size": words,
            "max_position_embeddings": shape("text_model.embeddings.position_embedding")[0],
            "eos_token_id": 2,  # read the embedding at the highest token id, as open_clip does
        },
    )
