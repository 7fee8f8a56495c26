"""How much of a prompt a reward reads, from small files alone: its tokenizer and the most tokens it takes."""

import json
from collections.abc import Callable
from typing import NamedTuple

import torch
from transformers import BertTokenizer, CLIPTokenizer, PreTrainedTokenizerBase

from reward_services.contents import local_path
from reward_services.models import clip, imagereward
from reward_services.models.checkpoints import read_tokenizer, weights_file
from reward_services.models.clip_score import ClipScore
from reward_services.models.hps import HPS, HPSv2
from reward_services.models.pickscore import PickScore
from reward_services.spec import RewardSpec

PUBLISHED_TOKENS = 77
"""Of every published CLIP."""


class Window(NamedTuple):
    """What is read of a prompt: the first `tokens` of its tokens, after `clean`."""

    tokenizer: PreTrainedTokenizerBase
    tokens: int
    clean: Callable[[str], str] = str


def window(spec: RewardSpec) -> Window | None:
    """Return the window of a reward; None for one that reads no prompt, or a user's own. Downloads nothing.

    Raises:
        ValueError: its tokenizer is not here.
    """
    if spec.model == "imagereward":
        given = read_tokenizer(
            BertTokenizer, spec.tokenizer, spec.checkpoint, imagereward.PUBLISHED_TOKENIZER, download=False
        )
        return Window(given, imagereward.MAX_TOKENS)
    if spec.model in ("pickscore", "clip_score"):
        kind = PickScore if spec.model == "pickscore" else ClipScore
        beside, published, clean = spec.checkpoint, kind.published_tokenizer, kind.clean
    elif spec.model in ("hps", "hps_v2"):
        kind = HPS if spec.model == "hps" else HPSv2
        here = local_path(spec.checkpoint)
        beside = str(here.parent if here and here.is_file() else spec.checkpoint)
        published, clean = clip.PUBLISHED_TOKENIZER, kind.clean
    else:
        return None
    tokenizer = read_tokenizer(CLIPTokenizer, spec.tokenizer, beside, published, download=False)
    return Window(tokenizer, _positions(spec), clean)


def _positions(spec: RewardSpec) -> int:
    """Return the most tokens that a CLIP's text tower takes."""
    here = local_path(spec.checkpoint)
    if here is None:
        return PUBLISHED_TOKENS
    if spec.model in ("pickscore", "clip_score"):
        described = json.loads((here / "config.json").read_text())
        return described.get("text_config", {}).get("max_position_embeddings", PUBLISHED_TOKENS)
    file = weights_file(spec.checkpoint, (HPS if spec.model == "hps" else HPSv2).published_file)
    state = torch.load(file, map_location="meta", weights_only=True)  # shapes alone
    return state.get("state_dict", state)["positional_embedding"].shape[0]
