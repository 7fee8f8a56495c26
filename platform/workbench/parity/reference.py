"""What an upstream package says of the tiny checkpoints; runs in its environment:

`python -m reward_services.parity.reference KIND CHECKPOINTS PICTURES RESULT`

Scores come from upstream's own function on saved PNGs. Gradients with respect to the pictures come from its network;
where upstream resizes 8-bit pictures, which no gradient passes, they pass by the native rule.
"""

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from importlib import import_module, metadata
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from reward_services.gradient import score_and_gradient
from reward_services.models import load
from reward_services.preprocess import imagereward_preprocess
from reward_services.protocol import RewardModel
from reward_services.spec import RewardSpec
from reward_services.upstream.byte_pairs import own_vocabulary
from reward_services.upstream.environment import provide_torchvision
from reward_services.upstream.pictures import to_pil
from workbench.parity.tiny import IMAGE_SIZE, OPENAI_FILE, PROMPTS, as_tensor

Judge = Callable[[str, Path], float]
DISTRIBUTIONS = {
    "imagereward": "image-reward",
    "clip_score": "image-reward",
    "aesthetic": "image-reward",
    "hps": "hpsv2x",
}


def main() -> None:
    """Judge every picture and write the scores and gradients."""
    kind, checkpoints, pictures, result = sys.argv[1], *map(Path, sys.argv[2:5])
    torch.set_num_threads(1)
    stands_in = provide_torchvision()
    judge, model = _JUDGES[kind](kind, checkpoints / kind)
    tensors: dict[str, Tensor] = {}
    scores = []
    for index, prompt in enumerate(PROMPTS):
        path = pictures / f"{index}.png"
        scores.append(judge(prompt, path))
        _, tensors[f"gradient.{index}"] = score_and_gradient(model, as_tensor(Image.open(path)), [prompt])
    tensors["scores"] = torch.tensor(scores, dtype=torch.float64)
    name = DISTRIBUTIONS[kind]
    described = {"package": f"{name}=={metadata.version(name)}", "torchvision": "stand-in" if stands_in else "real"}
    save_file(tensors, result, metadata={"upstream": json.dumps(described)})


def _imagereward(kind: str, checkpoint: Path) -> tuple[Judge, RewardModel]:
    adapter: Any = load(RewardSpec(name=kind, model="imagereward", checkpoint=str(checkpoint), backend="upstream"))
    return lambda prompt, path: adapter.model.score(prompt, str(path)), adapter


def _hps(kind: str, checkpoint: Path) -> tuple[Judge, RewardModel]:
    adapter: Any = load(RewardSpec(name=kind, model="hps", checkpoint=str(checkpoint), backend="upstream"))
    names, scoring = import_module("hpsv2.src.open_clip.tokenizer"), import_module("hpsv2.img_score")
    # Upstream builds its model once, from the network, and then loads the checkpoint at every call.
    scoring.model_dict.update(model=adapter.model, preprocess_val=adapter.transform)

    def judge(prompt: str, path: Path) -> float:
        with patch.object(names, "_tokenizer", adapter.tokenizer):
            (score,) = scoring.score(str(path), prompt, cp=str(checkpoint / adapter.published_file))
        return float(score)

    return judge, adapter


def _openai(kind: str, checkpoint: Path) -> tuple[Judge, RewardModel]:
    """CLIP score and aesthetics, which image-reward computes for comparison, by the package clip."""
    clip, names = import_module("clip"), import_module("clip.clip")
    module = import_module(
        {"clip_score": "ImageReward.models.CLIPScore", "aesthetic": "ImageReward.models.AestheticScore"}[kind]
    )
    words = own_vocabulary(import_module("clip.simple_tokenizer").SimpleTokenizer, checkpoint)
    vars(names)["_tokenizer"] = words
    real = partial(clip.load, str(checkpoint / OPENAI_FILE), device="cpu", jit=False)
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


_JUDGES = {
    "imagereward": _imagereward,
    "hps": _hps,
    "clip_score": _openai,
    "aesthetic": _openai,
}

if __name__ == "__main__":
    main()
