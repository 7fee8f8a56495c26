"""Prompts to conditions: the text encoders of every family. Their arguments are named as the parts of the pipeline."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from reward_services.models.tokens import check_summary, tokens_of
from slingstone.networks.embeddings import EmbeddingStore
from slingstone.networks.protocol import Condition

PIXART_TOKENS = 120
"""Of T5, of the published pipeline."""
SD3_T5_TOKENS = 256
"""Of T5, of the published pipeline."""


class PromptEncoder(nn.Module, ABC):
    """Encodes the prompts of a batch in one pass, padded to the encoder's length, so that none depends on another.

    Batches of other sizes agree up to the order of sums (to 1e-6 in fp32). A training batch is always encoded whole, as
    is a shard of stored embeddings; so a resumed run sees the same bits.
    """

    zero_null = False
    """Whether the embeddings of the unconditional condition are zeros instead of those of the empty prompt."""

    def __init__(self) -> None:
        super().__init__()
        self._dtype = torch.float32
        self._null: Condition = {}
        self._store: EmbeddingStore | None = None
        self._place: torch.device | None = None

    def rounding(self, dtype: torch.dtype) -> "PromptEncoder":
        """Return an encoder with the same weights in memory that multiplies in `dtype`, as networks under it do."""
        other = copy.copy(self)
        other._dtype, other._null = dtype, {}
        return other

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Condition:
        """Return the condition of each prompt, without gradient, on the encoder's device.

        Raises:
            KeyError: the text encoders have left the device, and a prompt is not in the store.
        """
        if self._store is not None:
            return {name: tensor.to(self._place) for name, tensor in self._store.read(prompts).items()}
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32):
            return self.compute(prompts)

    def null(self, batch: int) -> Condition:
        """Return the unconditional condition, `batch` times: that of the empty prompt, encoded once."""
        if not self._null:
            zeros = ("text", "pooled") if self.zero_null else ()
            empty = self.encode([""])
            self._null = {name: torch.zeros_like(value) if name in zeros else value for name, value in empty.items()}
        return {name: value.expand(batch, *value.shape[1:]) for name, value in self._null.items()}

    def read_from(self, store: EmbeddingStore) -> None:
        """Take all embeddings from a complete store from now on, so that the weights may leave the device."""
        self._store, self._place, self._null = store, self._device, {}

    @abstractmethod
    def compute(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Return the conditions of some prompts."""

    @property
    def _device(self) -> torch.device:
        return next(self.parameters()).device


class ClipTextEncoder(PromptEncoder):
    """Prompts to `{"text": [batch, token, width]}`, the last hidden state, padded to the encoder's length."""

    def __init__(self, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.model = text_encoder

    def compute(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Return the last hidden states."""
        tokens = _clip_tokens(self.tokenizer, self.model, prompts)
        return {"text": self.model(input_ids=tokens).last_hidden_state}


class SdxlTextEncoder(PromptEncoder):
    """Prompts to SDXL's condition.

    `text` [batch, token, width + width_2]: the hidden states before the last layer of both encoders, side by side;
    `pooled` [batch, projection]: the second encoder's projected summary;
    `time_ids` [batch, 6]: (height, width, 0, 0, height, width) of the pictures: their size before and after cropping,
    and the crop's corner.

    `picture_side` counts the pixels of a side of the (square) pictures; SDXL was trained with `zero_null`.

    Source: arXiv:2307.01952, sec. 2.2.
    """

    def __init__(
        self,
        tokenizer: CLIPTokenizer,
        tokenizer_2: CLIPTokenizer,
        text_encoder: CLIPTextModel,
        text_encoder_2: CLIPTextModelWithProjection,
        picture_side: int,
        zero_null: bool,
    ) -> None:
        super().__init__()
        check_summary(tokenizer_2, text_encoder_2.config)
        self.tokenizers = tokenizer, tokenizer_2
        self.first, self.second = text_encoder, text_encoder_2
        self.picture_side = picture_side
        self.zero_null = zero_null

    def compute(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Return the conditions of some prompts."""
        text, (_, second) = _clip_pair(self.tokenizers, (self.first, self.second), prompts)
        side = float(self.picture_side)
        sizes = torch.tensor([side, side, 0.0, 0.0, side, side], device=text.device)
        return {"text": text, "pooled": second.text_embeds, "time_ids": sizes.expand(len(prompts), 6)}


class PixArtTextEncoder(PromptEncoder):
    """Prompts to PixArt-alpha's condition.

    `text` [batch, token, width]: T5's last hidden state of the prompt in lower case, padded to 120 tokens;
    `mask` [batch, token]: 1 for the prompt's tokens, 0 for padding;
    `resolution` [batch, 2] and `aspect_ratio` [batch, 1] of the (square) pictures.

    Source: arXiv:2310.00426, and the pipeline of diffusers without its optional cleaning of HTML.
    Differs: the null condition is the encoding of the empty prompt; the tensor that stood for it in the original
    code is no part of checkpoints in diffusers' format.
    """

    def __init__(self, tokenizer: T5Tokenizer, text_encoder: T5EncoderModel, picture_side: int) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.model = text_encoder
        self.picture_side = picture_side
        self.tokens = PIXART_TOKENS

    def compute(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Return the conditions of some prompts."""
        ids, mask = _t5_tokens(self.tokenizer, self.model, [pixart_text(prompt) for prompt in prompts], self.tokens)
        text = self.model(ids, attention_mask=mask)[0]
        return {
            "text": text,
            "mask": mask,
            "resolution": torch.full((len(prompts), 2), float(self.picture_side), device=text.device),
            "aspect_ratio": torch.ones(len(prompts), 1, device=text.device),
        }


class Sd3TextEncoder(PromptEncoder):
    """Prompts to Stable Diffusion 3's condition.

    `text` [batch, token, width]: the hidden states before the last layer of both CLIP encoders, side by side and filled
    up with zeros to T5's width, then T5's last hidden state of 256 tokens;
    `pooled` [batch, projections]: both CLIP encoders' projected summaries, side by side.

    Source: arXiv:2403.03206, sec. 4 and fig. 2.
    """

    def __init__(
        self,
        tokenizer: CLIPTokenizer,
        tokenizer_2: CLIPTokenizer,
        tokenizer_3: T5Tokenizer,
        text_encoder: CLIPTextModelWithProjection,
        text_encoder_2: CLIPTextModelWithProjection,
        text_encoder_3: T5EncoderModel,
    ) -> None:
        super().__init__()
        check_summary(tokenizer, text_encoder.config)
        check_summary(tokenizer_2, text_encoder_2.config)
        self.clip_tokenizers = tokenizer, tokenizer_2
        self.first, self.second = text_encoder, text_encoder_2
        self.t5_tokenizer = tokenizer_3
        self.t5 = text_encoder_3
        self.t5_tokens = SD3_T5_TOKENS

    def compute(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Return the conditions of some prompts."""
        text, (first, second) = _clip_pair(self.clip_tokenizers, (self.first, self.second), prompts)
        # Without a mask: that is how the networks were trained.
        long = self.t5(_t5_tokens(self.t5_tokenizer, self.t5, prompts, self.t5_tokens)[0])[0]
        filled = torch.nn.functional.pad(text, (0, long.shape[-1] - text.shape[-1]))
        return {
            "text": torch.cat([filled, long], dim=1),
            "pooled": torch.cat([first.text_embeds, second.text_embeds], dim=-1),
        }


def pixart_text(prompt: str) -> str:
    """Return a prompt as PixArt's encoder reads it."""
    return prompt.lower().strip()


def clip_length(tokenizer: CLIPTokenizer, positions: int) -> int:
    """Return the most tokens that a CLIP encoder takes; a tokenizer saved without a length reports 1e30."""
    return min(tokenizer.model_max_length, positions)


def _clip_tokens(
    tokenizer: CLIPTokenizer, model: CLIPTextModel | CLIPTextModelWithProjection, prompts: Sequence[str]
) -> Tensor:
    """Return the token ids [batch, token] of prompts, padded or cut to what the model takes, on the model's device."""
    length = clip_length(tokenizer, model.config.max_position_embeddings)
    return tokens_of(tokenizer, prompts, length)[0].to(model.device, non_blocking=True)


def _clip_pair(
    tokenizers: tuple[CLIPTokenizer, CLIPTokenizer],
    models: tuple[CLIPTextModel | CLIPTextModelWithProjection, CLIPTextModelWithProjection],
    prompts: Sequence[str],
) -> tuple[Float[Tensor, "batch token width"], list[Any]]:
    """Return the hidden states before the last layer of two encoders, side by side, and the outputs of both."""
    outputs: list[Any] = [
        model(input_ids=_clip_tokens(tokenizer, model, prompts), output_hidden_states=True)
        for tokenizer, model in zip(tokenizers, models, strict=True)
    ]
    return torch.cat([output.hidden_states[-2] for output in outputs], dim=-1), outputs


def _t5_tokens(
    tokenizer: T5Tokenizer, model: T5EncoderModel, prompts: Sequence[str], length: int
) -> tuple[Tensor, Tensor]:
    """Return the token ids and the mask of prompts, padded or cut to a length, on the model's device."""
    ids, mask = tokens_of(tokenizer, prompts, length)
    return ids.to(model.device, non_blocking=True), mask.to(model.device, non_blocking=True)
