"""Cosine similarity of pictures and prompts by a CLIP model: the common part of PickScore, HPS and CLIP score."""

import html
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import ClassVar

import ftfy
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

from reward_services.models.checkpoints import PublishedReward
from reward_services.models.tokens import check_summary, tokens_of
from reward_services.preprocess import Preprocess, square_side
from reward_services.spec import PreprocessMode

PUBLISHED_TOKENIZER = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
_CACHED_PROMPTS = 4096


def unchanged(prompt: str) -> str:
    """Return the prompt as it is, as the transformers tokenizer is fed."""
    return prompt


def open_clip_text(prompt: str) -> str:
    """Return the prompt as open_clip's tokenizer cleans it: mojibake, HTML entities, white space, case.

    Source: open_clip tokenizer.py, `basic_clean`, `whitespace_clean`, `lower`.
    """
    prompt = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return re.sub(r"\s+", " ", prompt).strip().lower()


def tower_configs(model: CLIPModel) -> tuple[CLIPVisionConfig, CLIPTextConfig]:
    """Return the configurations of the picture's and the prompt's tower."""
    vision, text = model.config.vision_config, model.config.text_config
    assert isinstance(vision, CLIPVisionConfig)
    assert isinstance(text, CLIPTextConfig)
    return vision, text


def picture_side(model: CLIPModel) -> int:
    """Return the side of the pictures that a CLIP model takes, in pixels."""
    return square_side(tower_configs(model)[0].image_size, "vision_config.image_size")


class ClipSimilarity(nn.Module):
    """`cos(image embedding, text embedding)`, paired: picture `i` with prompt `i`.

    Text embeddings are cached by prompt while the model is in eval mode and its text weights are frozen.
    """

    def __init__(self, model: CLIPModel, tokenizer: CLIPTokenizer, clean: Callable[[str], str]):
        super().__init__()
        check_summary(tokenizer, tower_configs(model)[1])
        self.model = model
        self.tokenizer = tokenizer
        self.clean = clean
        self._cache: OrderedDict[str, Tensor] = OrderedDict()
        self._cached_weights: tuple[tuple[int, int], ...] = ()

    def forward(self, pixels: Float[Tensor, "batch 3 size size"], prompts: Sequence[str]) -> Float[Tensor, " batch"]:
        """Return the cosines, in float32 or better, of normalised model inputs and prompts."""
        hidden = self.model.vision_model(pixel_values=pixels.to(self.model.visual_projection.weight.dtype))
        images = _normalised(self.model.visual_projection(hidden.pooler_output))
        texts = self._cached(prompts) if self._frozen() else self._encode(prompts)
        return (images * texts).sum(dim=-1)

    def _encode(self, prompts: Sequence[str]) -> Float[Tensor, "batch width"]:
        length = tower_configs(self.model)[1].max_position_embeddings
        ids, _ = tokens_of(self.tokenizer, [self.clean(prompt) for prompt in prompts], length)
        # No padding mask: attention is causal and the embedding is read at the first end-of-text token.
        hidden = self.model.text_model(input_ids=ids.to(self.model.text_projection.weight.device))
        return _normalised(self.model.text_projection(hidden.pooler_output))

    def _text_parameters(self) -> list[nn.Parameter]:
        return [*self.model.text_model.parameters(), *self.model.text_projection.parameters()]

    def _frozen(self) -> bool:
        return not self.training and not any(parameter.requires_grad for parameter in self._text_parameters())

    def _cached(self, prompts: Sequence[str]) -> Float[Tensor, "batch width"]:
        # Storage and version of every weight: whatever loads, moves or trains them empties the cache.
        weights = tuple((parameter.data_ptr(), parameter._version) for parameter in self._text_parameters())
        if weights != self._cached_weights:
            self._cache.clear()
            self._cached_weights = weights
        with torch.no_grad():
            for prompt in dict.fromkeys(prompts):
                if prompt not in self._cache:  # alone: in a batch its last digits would depend on its company
                    self._cache[prompt] = self._encode([prompt])[0]
        for prompt in prompts:
            self._cache.move_to_end(prompt)
        embeddings = torch.stack([self._cache[prompt] for prompt in prompts])
        while len(self._cache) > _CACHED_PROMPTS:
            self._cache.popitem(last=False)
        return embeddings


class ClipReward(PublishedReward):
    """`cos(image, text)`, abstract: what PickScore, HPS and CLIP score share."""

    rule: ClassVar[Callable[[int, PreprocessMode], Preprocess]]
    """Of the pictures' preprocessing, given their size."""
    clean: ClassVar[Callable[[str], str]]
    """What is done to a prompt before it is tokenized."""
    scaled: ClassVar[bool] = False
    """Whether the cosine is multiplied by `exp(logit_scale)`."""

    def __init__(self, model: CLIPModel, tokenizer: CLIPTokenizer, preprocess: PreprocessMode = "exact"):
        super().__init__()
        self.similarity = ClipSimilarity(model, tokenizer, type(self).clean)
        self.preprocess = type(self).rule(picture_side(model), preprocess)

    def score(self, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]) -> Float[Tensor, " batch"]:
        """Return one score a picture for RGB pictures in [0, 1]."""
        cosines = self.similarity(self.preprocess(images), prompts)
        return self.similarity.model.logit_scale.exp() * cosines if self.scaled else cosines


def _normalised(embeddings: Float[Tensor, "batch width"]) -> Float[Tensor, "batch width"]:
    return F.normalize(embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)), dim=-1)
