"""What an upstream package says of the tiny checkpoints; runs in its environment:

`python -m workbench.parity.reference KIND CHECKPOINTS PICTURES RESULT`

Scores come from upstream's own function on saved PNGs. Gradients with respect to the pictures come from its network;
where upstream resizes 8-bit pictures, which no gradient passes, they pass by the native rule.
"""

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from PIL import Image
from torch import Tensor, nn

from reward_services.gradient import score_and_gradient
from reward_services.models import load
from reward_services.preprocess import imagereward_preprocess
from reward_services.protocol import RewardModel
from reward_services.spec import RewardSpec
from reward_services.upstream.environment import declare_torchvision, versions
from reward_services.upstream.inputs import own_vocabulary, to_pil
from workbench.parity.pictures import IMAGE_SIZE, as_tensor, record

Score = Callable[[str, Path], float]


def main() -> None:
    """Judge every picture and write the scores and gradients."""
    kind, checkpoints, pictures, result = sys.argv[1], *map(Path, sys.argv[2:5])
    torch.set_num_threads(1)
    declare_torchvision()
    score, model = _REWARDS[kind](kind, checkpoints / kind)

    def judge(prompt: str, path: Path) -> tuple[float, Tensor]:
        _, gradient = score_and_gradient(model, as_tensor(Image.open(path)), [prompt])
        return score(prompt, path), gradient

    record(judge, pictures, result, versions())


def _imagereward(kind: str, checkpoint: Path) -> tuple[Score, RewardModel]:
    adapter: Any = load(RewardSpec(name=kind, model="imagereward", checkpoint=str(checkpoint), backend="upstream"))
    return lambda prompt, path: adapter.model.score(prompt, str(path)), adapter


def _hps(kind: str, checkpoint: Path) -> tuple[Score, RewardModel]:
    adapter: Any = load(RewardSpec(name=kind, model="hps", checkpoint=str(checkpoint), backend="upstream"))
    names, scoring = import_module("hpsv2.src.open_clip.tokenizer"), import_module("hpsv2.img_score")
    # Upstream builds its model once, from the network, and then loads the checkpoint at every call.
    scoring.model_dict.update(model=adapter.model, preprocess_val=adapter.transform)

    def score(prompt: str, path: Path) -> float:
        with patch.object(names, "_tokenizer", adapter.tokenizer):
            (found,) = scoring.score(str(path), prompt, cp=str(checkpoint / adapter.published_file))
        return float(found)

    return score, adapter


def _openai(kind: str, checkpoint: Path) -> tuple[Score, RewardModel]:
    """CLIP score and aesthetics, which image-reward computes for comparison, by the package clip."""
    clip, names = import_module("clip"), import_module("clip.clip")
    module = import_module(
        {"clip_score": "ImageReward.models.CLIPScore", "aesthetic": "ImageReward.models.AestheticScore"}[kind]
    )
    words = own_vocabulary(import_module("clip.simple_tokenizer").SimpleTokenizer, checkpoint)
    vars(names)["_tokenizer"] = words
    (tower,) = checkpoint.glob("*.pt")
    real = partial(clip.load, str(tower), device="cpu", jit=False)
    with ExitStack() as stack:
        stack.enter_context(patch.object(clip, "load", lambda *_, **__: real()))
        if kind == "clip_score":
            scorer = module.CLIPScore(download_root=None)
        else:
            (weights,) = checkpoint.glob("*.pth")
            state = torch.load(weights, weights_only=True)
            head = module.MLP
            stack.enter_context(patch.object(module, "MLP", lambda _: head(state["layers.0.weight"].shape[1])))
            scorer = module.AestheticScore(download_root=None)
            scorer.mlp.load_state_dict(state)
    scorer.eval()
    return lambda prompt, path: scorer.score(prompt, str(path)), _OpenAI(scorer, clip.tokenize)


class _OpenAI(nn.Module):
    """The formula of CLIPScore.score or AestheticScore.score without its `detach`."""

    def __init__(self, scorer: Any, tokenize: Callable[..., Tensor]):
        super().__init__()
        self.scorer, self.tokenize = scorer, tokenize

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        smooth = imagereward_preprocess(IMAGE_SIZE, "exact")(images)
        pixels = self.scorer.preprocess(to_pil(images)).unsqueeze(0) + (smooth - smooth.detach())
        features = nn.functional.normalize(self.scorer.clip_model.encode_image(pixels))
        if "mlp" in dict(self.scorer.named_children()):
            return self.scorer.mlp(features).squeeze(-1)
        texts = self.scorer.clip_model.encode_text(self.tokenize(list(prompts), truncate=True))
        return torch.sum(nn.functional.normalize(texts) * features, dim=1)


_REWARDS = {"imagereward": _imagereward, "hps": _hps, "clip_score": _openai, "aesthetic": _openai}

if __name__ == "__main__":
    main()
