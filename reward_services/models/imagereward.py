"""ImageReward v1.0: BLIP's ViT-L/16, BERT with cross-attention to the picture, and an MLP on the first token.

Source: Xu et al., arXiv:2304.05977; weights THUDM/ImageReward.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor
from transformers import BertTokenizer, BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from reward_services.models.checkpoints import PublishedReward, fetch, load_strict, read_state_dict, read_tokenizer
from reward_services.models.head import RewardHead, head_of
from reward_services.models.layouts import count_blocks, imagereward_to_transformers
from reward_services.models.tokens import tokens_of
from reward_services.preprocess import imagereward_preprocess, square_side
from reward_services.spec import PreprocessMode

PUBLISHED_TOKENIZER = "google-bert/bert-base-uncased"
WEIGHTS_FILE = "ImageReward.pt"
TEXT_CONFIG_FILE = "med_config.json"
VISION_CONFIG_FILE = "vision_config.json"
MAX_TOKENS = 35
TEXT_SETTINGS = (
    "num_attention_heads",
    "hidden_act",
    "layer_norm_eps",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "initializer_range",
)
"""What of the text tower the state dict does not tell, in the words of `med_config.json` and transformers alike."""
VISION_LAYER_NORM_EPS = 1e-6
_MEAN, _STD = 0.16717362830052426, 1.0333394966054072


class ImageReward(PublishedReward):
    """`(MLP(h_cls) - 0.1672) / 1.0333`; published weights give about -2.3 to 2."""

    def __init__(
        self,
        vision: BlipVisionModel,
        text: BlipTextModel,
        mlp: RewardHead,
        tokenizer: BertTokenizer,
        preprocess: PreprocessMode = "exact",
    ):
        super().__init__()
        if len(tokenizer) > text.config.vocab_size:
            raise ValueError(f"tokenizer has {len(tokenizer)} tokens, the BERT model only {text.config.vocab_size}")
        if (first := tokenizer("a").input_ids[0]) != tokenizer.cls_token_id:
            raise ValueError(
                f"tokenizer begins prompts with token {first}, not with {tokenizer.cls_token!r}, where the score is "
                "read: give that of the checkpoint"
            )
        self.vision = vision
        self.text = text
        self.mlp = mlp
        self.tokenizer = tokenizer
        self.preprocess = imagereward_preprocess(square_side(vision.config.image_size, "image_size"), preprocess)

    @classmethod
    def read(
        cls, checkpoint: str | Path, tokenizer: str | None
    ) -> tuple[BlipVisionModel, BlipTextModel, RewardHead, BertTokenizer]:
        """Read a directory or hub id with `ImageReward.pt` and `med_config.json`.

        The vision tower's geometry comes from the state dict; it has width / 64 heads unless a `vision_config.json`
        beside the weights says otherwise.
        """
        path = fetch(checkpoint, WEIGHTS_FILE)
        med_config = json.loads(fetch(checkpoint, TEXT_CONFIG_FILE).read_text())
        vision_state, text_state, head_state = imagereward_to_transformers(read_state_dict(path))
        try:
            vision = BlipVisionModel(vision_geometry(vision_state, described_vision(path)))
            text = BlipTextModel(_text_geometry(text_state, med_config), add_pooling_layer=False)
            mlp = head_of(head_state)
        except KeyError as error:
            raise ValueError(f"checkpoint {str(path)!r} is not a whole ImageReward: it lacks {error}") from error
        for module, state in ((vision, vision_state), (text, text_state), (mlp, head_state)):
            load_strict(module, state, str(path))
        return vision, text, mlp, read_tokenizer(BertTokenizer, tokenizer, path.parent, PUBLISHED_TOKENIZER)

    def score(self, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]) -> Float[Tensor, " batch"]:
        """Return one score a picture for RGB pictures in [0, 1]."""
        pixels = self.preprocess(images).to(self.vision.embeddings.patch_embedding.weight.dtype)
        patches = self.vision(pixel_values=pixels).last_hidden_state
        ids, mask = tokens_of(self.tokenizer, prompts, MAX_TOKENS)
        hidden = self.text(
            input_ids=ids.to(patches.device),
            attention_mask=mask.to(patches.device),
            encoder_hidden_states=patches,
            is_decoder=False,  # attention is bidirectional; the configuration only asks for cross-attention layers
        ).last_hidden_state
        reward = self.mlp(hidden[:, 0].to(self.mlp.layers[0].weight.dtype)).squeeze(-1)
        return (reward - _MEAN) / _STD


def described_vision(weights: Path) -> dict[str, Any]:
    """Return what a `vision_config.json` beside the weights says, if there is one."""
    sidecar = weights.with_name(VISION_CONFIG_FILE)
    return json.loads(sidecar.read_text()) if sidecar.is_file() else {}


def vision_geometry(state: Mapping[str, Tensor], described: Mapping[str, Any]) -> BlipVisionConfig:
    """Return the vision tower's geometry; KeyError if a weight that tells it is missing."""
    patches = state["embeddings.patch_embedding.weight"]
    positions = state["embeddings.position_embedding"].shape[1]
    width, patch = patches.shape[0], patches.shape[-1]
    return BlipVisionConfig(
        hidden_size=width,
        intermediate_size=state["encoder.layers.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=count_blocks(state, "encoder.layers"),
        num_attention_heads=described.get("num_attention_heads", max(1, width // 64)),
        image_size=round((positions - 1) ** 0.5) * patch,
        patch_size=patch,
        layer_norm_eps=VISION_LAYER_NORM_EPS,
    )


def _text_geometry(state: Mapping[str, Tensor], med_config: Mapping[str, Any]) -> BlipTextConfig:
    vocabulary, width = state["embeddings.word_embeddings.weight"].shape
    return BlipTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        # med_config says 768; upstream overwrites it with the width of the vision tower.
        encoder_hidden_size=state["encoder.layer.0.crossattention.self.key.weight"].shape[1],
        intermediate_size=state["encoder.layer.0.intermediate.dense.weight"].shape[0],
        num_hidden_layers=count_blocks(state, "encoder.layer"),
        max_position_embeddings=state["embeddings.position_embeddings.weight"].shape[0],
        is_decoder=True,
        **{name: med_config[name] for name in TEXT_SETTINGS if name in med_config},
    )
