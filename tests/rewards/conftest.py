"""Tiny random rewards, written in the layouts in which the real ones are published."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
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

from reward_services.models.head import RewardHead
from reward_services.models.writers import write_hps, write_imagereward, write_pickscore
from reward_services.spec import RewardSpec

IMAGE_SIZE = 24
WORDS = ("a", "red", "blue", "circle", "square", "on", "green", "it", "'", "s")
KINDS = ("pickscore", "hps", "hps_v2", "imagereward", "clip_score", "aesthetic")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Results are compared bit by bit with those of replicas, which run one thread."""
    torch.set_num_threads(1)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _clip_tokenizer(directory: Path) -> CLIPTokenizer:
    """A byte-level BPE of single characters and the words of WORDS."""
    characters = [chr(code) for code in range(33, 127)]
    tokens = characters + [f"{character}</w>" for character in characters]
    merges = []
    for word in WORDS:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        while len(pieces) > 1:
            merges.append(f"{pieces[0]} {pieces[1]}")
            pieces[:2] = [pieces[0] + pieces[1]]
            tokens.append(pieces[0])
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (directory / "merges.txt").write_text("#version: 0.2\n" + "\n".join(dict.fromkeys(merges)) + "\n")
    return CLIPTokenizer.from_pretrained(str(directory))


def _clip(tokenizer: CLIPTokenizer, activation: str = "gelu") -> CLIPModel:
    text = {
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "vocab_size": len(tokenizer),
        "hidden_act": activation,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": IMAGE_SIZE,
        "patch_size": 6,
        "hidden_act": activation,
    }
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    return _lively(model).eval()


def _lively(module: torch.nn.Module) -> torch.nn.Module:
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


@pytest.fixture(scope="session")
def rewards_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with one published checkpoint a kind."""
    root = tmp_path_factory.mktemp("rewards")
    tokenizer = _clip_tokenizer(root / "tokenizer")
    write_pickscore(_clip(tokenizer), tokenizer, root / "pickscore")
    write_hps(_clip(tokenizer), tokenizer, root / "hps")
    write_hps(_clip(tokenizer), tokenizer, root / "hps_v2")
    (root / "hps_v2" / "HPS_v2.1_compressed.pt").rename(root / "hps_v2" / "HPS_v2_compressed.pt")
    # PickScore's layout is transformers' own, in which OpenAI's CLIP is published too.
    write_pickscore(_clip(tokenizer, "quick_gelu"), tokenizer, root / "clip_score")
    write_pickscore(_clip(tokenizer, "quick_gelu"), tokenizer, root / "aesthetic")
    torch.save(_lively(RewardHead(16)).state_dict(), root / "aesthetic" / "sac+logos+ava1-l14-linearMSE.pth")
    vocabulary = root / "bert" / "vocab.txt"
    vocabulary.parent.mkdir()
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "."]) + "\n")
    bert = BertTokenizer.from_pretrained(str(vocabulary.parent))
    vision = BlipVisionModel(
        BlipVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=IMAGE_SIZE,
            patch_size=6,
            layer_norm_eps=1e-6,
        )
    )
    text = BlipTextModel(
        BlipTextConfig(
            vocab_size=len(bert) + 2,
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
    write_imagereward(_lively(vision), _lively(text), _lively(head), bert, root / "imagereward")
    return root


@pytest.fixture(scope="session")
def spec(rewards_root: Path) -> Callable[..., RewardSpec]:
    """Return a function that specifies the tiny reward of a kind."""
    return lambda kind, **changes: RewardSpec(
        **{"name": kind, "model": kind, "checkpoint": str(rewards_root / kind), **changes}
    )
