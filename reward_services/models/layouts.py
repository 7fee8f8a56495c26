"""Published checkpoint layouts and how transformers' modules map to them, both ways.

* HPS: an open_clip state dict under the key `state_dict`, query, key and value projections fused.
* ImageReward: one flat state dict: BLIP's own ViT, BERT with cross-attention, and the MLP head.
PickScore is published in transformers' own layout.
"""

import re
from collections.abc import Iterable, Mapping
from itertools import product

import torch
from torch import Tensor

_CLIP_NAMES = {
    "logit_scale": "logit_scale",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "text_projection": "text_projection.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "visual.proj": "visual_projection.weight",
}
_CLIP_TRANSPOSED = ("text_projection", "visual.proj")
_CLIP_BLOCKS = {"transformer.resblocks": "text_model.encoder", "visual.transformer.resblocks": "vision_model.encoder"}
_CLIP_BLOCK_NAMES = {
    "ln_1.": "layer_norm1.",
    "ln_2.": "layer_norm2.",
    "attn.in_proj_": "self_attn.{}_proj.",  # query, key and value, one after the other
    "attn.out_proj.": "self_attn.out_proj.",
    "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.",
}
_BLIP_VISION_NAMES = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.weight": "embeddings.patch_embedding.weight",
    "patch_embed.proj.bias": "embeddings.patch_embedding.bias",
    "norm.weight": "post_layernorm.weight",
    "norm.bias": "post_layernorm.bias",
}
_BLIP_BLOCK_NAMES = {
    "norm1.": "layer_norm1.",
    "norm2.": "layer_norm2.",
    "attn.qkv.": "self_attn.qkv.",
    "attn.proj.": "self_attn.projection.",
    "mlp.fc1.": "mlp.fc1.",
    "mlp.fc2.": "mlp.fc2.",
}
_VISION, _TEXT, _HEAD = "blip.visual_encoder.", "blip.text_encoder.", "mlp."
# Contrastive heads of BLIP's pretraining, which the reward does not use, and a buffer of indices.
IMAGEREWARD_UNUSED = ("blip.vision_proj.", "blip.text_proj.", "blip.text_encoder.embeddings.position_ids")


def open_clip_to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of a transformers `CLIPModel` from an open_clip one; ValueError if a name is foreign."""
    layers = {blocks: count_blocks(state, blocks) for blocks in _CLIP_BLOCKS}
    names, converted = _clip_names(layers), {}
    for name, tensor in state.items():
        if name not in names:
            raise ValueError(f"{name!r} is not a weight of an open_clip CLIP model: give an HPS checkpoint")
        if "{}" in names[name]:
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                converted[names[name].format(part)] = piece.contiguous()
        else:
            converted[names[name]] = tensor.T.contiguous() if name in _CLIP_TRANSPOSED else tensor
    return converted


def transformers_to_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the open_clip state dict of a transformers `CLIPModel`'s; the inverse of `open_clip_to_transformers`."""
    layers = {blocks: count_blocks(state, f"{encoder}.layers") for blocks, encoder in _CLIP_BLOCKS.items()}
    converted: dict[str, Tensor] = {}
    for name, target in _clip_names(layers).items():
        if "{}" in target:
            converted[name] = torch.cat([state[target.format(part)] for part in "qkv"])
        else:
            converted[name] = state[target].T.contiguous() if name in _CLIP_TRANSPOSED else state[target]
    return converted


def imagereward_to_transformers(
    state: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Return the states of vision tower, text tower and head from the flat one; ValueError if a name is foreign."""
    names = _blip_names(count_blocks(state, f"{_VISION}blocks"))
    vision: dict[str, Tensor] = {}
    text: dict[str, Tensor] = {}
    head: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.startswith(IMAGEREWARD_UNUSED):
            continue
        if name in names:
            vision[names[name]] = tensor
        elif name.startswith(_TEXT):
            text[name.removeprefix(_TEXT)] = tensor
        elif name.startswith(_HEAD):
            head[name.removeprefix(_HEAD)] = tensor
        else:
            raise ValueError(f"{name!r} is not a weight of ImageReward: give the published ImageReward.pt")
    return vision, text, head


def transformers_to_imagereward(
    vision: Mapping[str, Tensor], text: Mapping[str, Tensor], head: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the flat published state dict; the inverse of `imagereward_to_transformers`."""
    names = _blip_names(count_blocks(vision, "encoder.layers"))
    return (
        {name: vision[target] for name, target in names.items()}
        | {f"{_TEXT}{name}": tensor for name, tensor in text.items()}
        | {f"{_HEAD}{name}": tensor for name, tensor in head.items()}
    )


def count_blocks(names: Iterable[str], prefix: str) -> int:
    """Return how many numbered blocks `<prefix>.<number>.` a state dict has."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    return len({match[1] for name in names if (match := pattern.match(name))})


def _clip_names(layers: Mapping[str, int]) -> dict[str, str]:
    """Return transformers' names by open_clip's, for so many blocks of each tower; {} stands for q, k and v."""
    names = dict(_CLIP_NAMES)
    for blocks, encoder in _CLIP_BLOCKS.items():
        names |= _block_names(layers[blocks], blocks, f"{encoder}.layers", _CLIP_BLOCK_NAMES)
    return names


def _blip_names(layers: int) -> dict[str, str]:
    """Return transformers' names of the vision tower by those of ImageReward, for so many blocks."""
    names = {f"{_VISION}{name}": target for name, target in _BLIP_VISION_NAMES.items()}
    return names | _block_names(layers, f"{_VISION}blocks", "encoder.layers", _BLIP_BLOCK_NAMES)


def _block_names(layers: int, blocks: str, own_blocks: str, names: Mapping[str, str]) -> dict[str, str]:
    return {
        f"{blocks}.{layer}.{name}{kind}": f"{own_blocks}.{layer}.{own}{kind}"
        for layer, (name, own), kind in product(range(layers), names.items(), ("weight", "bias"))
    }
