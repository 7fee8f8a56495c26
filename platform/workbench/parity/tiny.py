"""Tiny random rewards in the layouts in which the real ones are published.

Every byte follows from fixed seeds, so that results of the upstream packages can be kept and compared later.
"""

import json
from pathlib import Path

import torch
from torch import nn
from transformers import (
    BertTokenizer,
    BlipTextConfig,
    BlipTextModel,
    BlipVisionConfig,
    BlipVisionModel,
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
)

from reward_services.models.aesthetic import PUBLISHED_FILE as AESTHETIC_FILE
from reward_services.models.head import RewardHead
from reward_services.models.hps import PUBLISHED_FILE, HPSv2
from reward_services.models.imagereward import VISION_LAYER_NORM_EPS
from reward_services.models.layouts import transformers_to_open_clip
from reward_services.models.writers import write_hps, write_imagereward, write_pickscore
from workbench.parity.pictures import IMAGE_SIZE

WORDS = ("a", "red", "blue", "circle", "square", "on", "green", "it", "'", "s")
OPENAI_FILE = "ViT-L-14.pt"


def write_checkpoints(root: Path) -> None:
    """Write one checkpoint a kind of reward under `root`; `tokenizer` and `bert` hold their tokenizers alone."""
    tokenizer = clip_tokenizer(root / "tokenizer")
    write_pickscore(_clip(tokenizer), tokenizer, root / "pickscore")
    write_hps(_clip(tokenizer), tokenizer, root / "hps")
    write_hps(_clip(tokenizer), tokenizer, root / "hps_v2")
    (root / "hps_v2" / PUBLISHED_FILE).rename(root / "hps_v2" / HPSv2.published_file)
    openai = _openai_clip(tokenizer)
    for kind in ("clip_score", "aesthetic"):
        # PickScore's layout is transformers' own, in which OpenAI's CLIP is published too.
        write_pickscore(openai, tokenizer, root / kind)
        torch.save(transformers_to_open_clip(openai.state_dict()), root / kind / OPENAI_FILE)
    torch.save(_lively(RewardHead(16)).state_dict(), root / "aesthetic" / AESTHETIC_FILE)
    _write_imagereward(root)


def clip_tokenizer(directory: Path) -> CLIPTokenizer:
    """A byte-level BPE with the words of WORDS, in the order of OpenAI's: bytes, bytes that end words, merges."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    symbols = [chr(code) for code in [*printable, *range(256, 256 + len(others))]]
    tokens = [*symbols, *(f"{symbol}</w>" for symbol in symbols)]
    merges = []
    for word in WORDS:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        while len(pieces) > 1:
            merge = f"{pieces[0]} {pieces[1]}"
            pieces[:2] = [pieces[0] + pieces[1]]
            if merge not in merges:
                merges.append(merge)
                tokens.append(pieces[0])
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (directory / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    return CLIPTokenizer.from_pretrained(str(directory))


def _clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    vision = {"hidden_size": 32, "intermediate_size": 128, "num_attention_heads": 4, "hidden_act": "gelu"}
    text = {"hidden_size": 24, "intermediate_size": 96, "num_attention_heads": 3, "hidden_act": "gelu"}
    return _clip_of(tokenizer, vision, text)


def _openai_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    # OpenAI's loader gives every 64 channels a head, and keeps weights in half precision.
    tower = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 1, "hidden_act": "quick_gelu"}
    return _clip_of(tokenizer, tower, tower).half().float()


def _clip_of(tokenizer: CLIPTokenizer, vision: dict[str, object], text: dict[str, object]) -> CLIPModel:
    vision = vision | {"num_hidden_layers": 2, "image_size": IMAGE_SIZE, "patch_size": 6}
    text = text | {"num_hidden_layers": 2, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    model = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=16))
    _lively(model)
    return model.eval()


def _write_imagereward(root: Path) -> None:
    vocabulary = root / "bert" / "vocab.txt"
    vocabulary.parent.mkdir(parents=True, exist_ok=True)
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "."]) + "\n")
    tokenizer = BertTokenizer.from_pretrained(str(vocabulary.parent))
    vision = BlipVisionModel(
        BlipVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=IMAGE_SIZE,
            patch_size=6,
            layer_norm_eps=VISION_LAYER_NORM_EPS,
        )
    )
    text = BlipTextModel(
        BlipTextConfig(
            vocab_size=len(tokenizer) + 2,
            hidden_size=24,
            encoder_hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=3,
            max_position_embeddings=64,
            is_decoder=True,
        ),
        add_pooling_layer=False,
    )
    head = RewardHead(24)
    for module in (vision, text, head):
        _lively(module)
    write_imagereward(vision, text, head, tokenizer, root / "imagereward")


def _lively(module: nn.Module) -> nn.Module:
    """Random weights and biases large enough that every one of them matters to the score."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in module.named_parameters():
        if name.endswith("logit_scale"):
            parameter.data.fill_(3.0)
            continue
        scale = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.1
        parameter.data = scale * torch.randn(parameter.shape, generator=generator)
        if "norm" in name.lower() and name.endswith("weight"):
            parameter.data += 1.0
    return module
