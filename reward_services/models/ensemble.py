"""Several heads on one tower: their mean, less so many times their spread, where they do not know.

An aligned generator finds the pictures on which a reward errs. There, heads that learnt from votes drawn anew differ.
Source: Coste et al., arXiv:2310.02743, eq. 2 (uncertainty-weighted optimisation). Differs: standard deviation, not its
square.
"""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from reward_services.models.checkpoints import PublishedReward, fetch, load_strict
from reward_services.models.clip import ClipReward, normalised
from reward_services.models.head import RewardHead
from reward_services.models.hps import HPS
from reward_services.models.imagereward import ImageReward
from reward_services.models.pickscore import PickScore
from reward_services.spec import PreprocessMode

FILE = "ensemble.json"
WEIGHTS_FILE = "heads.safetensors"
MAX_LOG_SCALE = 4.6052  # log 100: CLIP's own bound
_BASES = {"pickscore": PickScore, "hps": HPS, "imagereward": ImageReward}


class ClipHead(nn.Module):
    """Projections and temperature of a CLIP."""

    def __init__(self, base: ClipReward) -> None:
        super().__init__()
        model = base.similarity.model
        width = model.visual_projection.out_features
        self.visual = nn.Linear(model.visual_projection.in_features, width, bias=False)
        self.text = nn.Linear(model.text_projection.in_features, width, bias=False)
        self.logit_scale = nn.Parameter(torch.zeros(()))
        self.visual.weight.data.copy_(model.visual_projection.weight)
        self.text.weight.data.copy_(model.text_projection.weight)
        self.logit_scale.data.copy_(model.logit_scale)

    def forward(
        self, vision: Float[Tensor, "batch seen"], text: Float[Tensor, "batch read"]
    ) -> Float[Tensor, " batch"]:
        """Return the cosines of what the towers made of pictures and prompts."""
        seen = normalised(self.visual(vision.to(self.visual.weight.dtype)))
        return (seen * normalised(self.text(text.to(self.text.weight.dtype)))).sum(dim=-1)


class Ensemble(nn.Module):
    """`mean - spread_weight * standard deviation` of the scores of several heads, by one pass through the towers."""

    def __init__(self, base: PickScore | HPS | ImageReward, heads: nn.ModuleList, spread_weight: float) -> None:
        super().__init__()
        self.base = base
        self.heads = heads
        self.spread_weight = spread_weight
        self.preprocess = base.preprocess
        self.kind = next(name for name, kind in _BASES.items() if isinstance(base, kind))

    @classmethod
    def around(cls, base: PickScore | HPS | ImageReward, heads: int, spread_weight: float) -> "Ensemble":
        """Return heads that begin as the reward's own."""
        return cls(base, nn.ModuleList([_head_of(base) for _ in range(heads)]), spread_weight)

    @classmethod
    def load(
        cls,
        checkpoint: str | Path,
        tokenizer: str | None = None,
        preprocess: PreprocessMode = "exact",
        dtype: torch.dtype = torch.float32,
    ) -> "Ensemble":
        """Read a directory with `ensemble.json`, `heads.safetensors`, and the reward that they are of.

        Raises:
            ValueError: it is none, or not whole.
        """
        settings = json.loads(fetch(checkpoint, FILE).read_text())
        if settings.get("model") not in _BASES or not isinstance(settings.get("heads"), int):
            raise ValueError(
                f"checkpoint {str(checkpoint)!r}: {FILE} names no model and number of heads: write it anew"
            )
        kind: type[PublishedReward] = _BASES[settings["model"]]
        base = cast("PickScore | HPS | ImageReward", kind.load(checkpoint, tokenizer, preprocess, dtype))
        ensemble = cls.around(base, settings["heads"], float(settings["spread_weight"]))
        load_strict(ensemble.heads, load_file(fetch(checkpoint, WEIGHTS_FILE)), f"{checkpoint}/{WEIGHTS_FILE}")
        return ensemble

    def score(self, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]) -> Float[Tensor, " batch"]:
        """Return one score a picture for RGB pictures in [0, 1]."""
        scores = self._scores(images, prompts, scaled=not isinstance(self.base, HPS))
        mean = scores.mean(dim=0)
        # A norm, whose gradient is 0 where all heads agree; the root of a variance has none there.
        spread = torch.linalg.vector_norm(scores - mean, dim=0) / len(scores) ** 0.5
        return mean - self.spread_weight * spread

    def head_logits(
        self, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]
    ) -> Float[Tensor, "heads batch"]:
        """Return what each head is fitted by: its score, a CLIP's cosine times its temperature."""
        return self._scores(images, prompts, scaled=True)

    def _scores(self, images: Tensor, prompts: Sequence[str], scaled: bool) -> Tensor:
        base = self.base
        if isinstance(base, ImageReward):
            base.preprocess = self.preprocess
            summaries = base.summaries(images, prompts)
            return torch.stack([base.judged(summaries, cast("RewardHead", head)) for head in self.heads])
        similarity, pixels = base.similarity, self.preprocess(images)
        model = similarity.model
        vision = model.vision_model(pixel_values=pixels.to(model.visual_projection.weight.dtype)).pooler_output
        text = similarity.summaries(prompts)
        heads = [cast("ClipHead", head) for head in self.heads]
        cosines = torch.stack([head(vision, text) for head in heads])
        if not scaled:
            return cosines
        scales = torch.stack([head.logit_scale.clamp(max=MAX_LOG_SCALE).exp() for head in heads])
        return scales.to(cosines.dtype)[:, None] * cosines


def _head_of(base: PickScore | HPS | ImageReward) -> nn.Module:
    if isinstance(base, ImageReward):
        return copy.deepcopy(base.mlp)
    return ClipHead(base)
