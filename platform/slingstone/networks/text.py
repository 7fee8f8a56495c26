"""Prompts to conditions: the text encoders of every family. Their arguments are named as the parts of the pipeline."""

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from slingstone.networks.embeddings import EmbeddingStore
from slingstone.networks.protocol import Condition

PIXART_TOKENS = 120
"""Of T5, of the published pipeline."""
SD3_T5_TOKENS = 256
"""Of T5, of the published pipeline."""


class RememberingEncoder(nn.Module, ABC):
    """Encodes every prompt alone and remembers it.

    So an encoding depends on no other prompt of a batch and on no history: a resumed run sees the same numbers to the
    last bit.
    """

    cache_prompts = 4096
    """How many encodings are remembered, the least recently used forgotten first. One takes token * width * 4 bytes:
    236 KB for Stable Diffusion 1.5, 636 KB for SDXL."""
    zero_null = False
    """Whether the embeddings of the unconditional condition are zeros instead of those of the empty prompt."""

    def __init__(self) -> None:
        super().__init__()
        self._cache: OrderedDict[str, dict[str, Tensor]] = OrderedDict()
        self._store: EmbeddingStore | None = None
        self._device: torch.device | None = None

    def encode(self, prompts: Sequence[str]) -> Condition:
        """Return the condition of each prompt, without gradient, on the encoder's device."""
        device = self._device or next(self.parameters()).device
        rows = [self._encoding(prompt) for prompt in prompts]
        return {name: torch.stack([row[name] for row in rows]).to(device) for name in rows[0]}

    def null(self, batch: int) -> Condition:
        """Return the unconditional condition, `batch` times: that of the empty prompt."""
        zeros = ("text", "pooled") if self.zero_null else ()
        empty = self.encode([""] * batch)
        return {name: torch.zeros_like(tensor) if name in zeros else tensor for name, tensor in empty.items()}

    def compute_into(self, store: EmbeddingStore, prompts: Sequence[str]) -> None:
        """Encode those of `prompts` that the store lacks, and from now on read the store first."""
        self._store = store
        for prompt in dict.fromkeys(prompts):
            if prompt not in store:
                store.write(prompt, self._computed(prompt))

    def leave_device(self) -> None:
        """Move the weights to host memory; conditions stay where they were, and an unknown prompt is encoded there."""
        self._device = next(self.parameters()).device
        self.cpu()

    @abstractmethod
    def compute(self, prompt: str) -> dict[str, Tensor]:
        """Return the condition of one prompt, without the batch's axis, in fp32; `encode` remembers it."""

    def _encoding(self, prompt: str) -> dict[str, Tensor]:
        if prompt in self._cache:
            self._cache.move_to_end(prompt)
        else:
            stored = self._store is not None and prompt in self._store
            self._cache[prompt] = self._store.read(prompt) if self._store and stored else self._computed(prompt)
            if len(self._cache) > self.cache_prompts:
                self._cache.popitem(last=False)
        return self._cache[prompt]

    @torch.no_grad()
    def _computed(self, prompt: str) -> dict[str, Tensor]:
        # In host memory: thousands of encodings would crowd the accelerator.
        return {name: tensor.cpu() for name, tensor in self.compute(prompt).items()}


class ClipTextEncoder(RememberingEncoder):
    """Prompts to `{"text": [batch, token, width]}`, the last hidden state, padded to the encoder's length."""

    def __init__(self, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.model = text_encoder

    def compute(self, prompt: str) -> dict[str, Tensor]:
        """Return the last hidden state of one prompt."""
        tokens = _clip_tokens(self.tokenizer, self.model, prompt)
        return {"text": self.model(input_ids=tokens).last_hidden_state[0].float()}


class SdxlTextEncoder(RememberingEncoder):
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
        self.tokenizers = tokenizer, tokenizer_2
        self.first, self.second = text_encoder, text_encoder_2
        self.picture_side = picture_side
        self.zero_null = zero_null

    def compute(self, prompt: str) -> dict[str, Tensor]:
        """Return the condition of one prompt."""
        text, (_, second) = _clip_pair(self.tokenizers, (self.first, self.second), prompt)
        side = float(self.picture_side)
        return {
            "text": text,
            "pooled": second.text_embeds[0].float(),
            "time_ids": torch.tensor([side, side, 0.0, 0.0, side, side]),
        }


class PixArtTextEncoder(RememberingEncoder):
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

    def compute(self, prompt: str) -> dict[str, Tensor]:
        """Return the condition of one prompt."""
        words = _t5_tokens(self.tokenizer, self.model, prompt.lower().strip(), self.tokens)
        side = float(self.picture_side)
        return {
            "text": self.model(words.input_ids, attention_mask=words.attention_mask)[0][0].float(),
            "mask": words.attention_mask[0],
            "resolution": torch.tensor([side, side]),
            "aspect_ratio": torch.ones(1),
        }


class Sd3TextEncoder(RememberingEncoder):
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
        self.clip_tokenizers = tokenizer, tokenizer_2
        self.first, self.second = text_encoder, text_encoder_2
        self.t5_tokenizer = tokenizer_3
        self.t5 = text_encoder_3
        self.t5_tokens = SD3_T5_TOKENS

    def compute(self, prompt: str) -> dict[str, Tensor]:
        """Return the condition of one prompt."""
        text, (first, second) = _clip_pair(self.clip_tokenizers, (self.first, self.second), prompt)
        # Without a mask: that is how the networks were trained.
        long = self.t5(_t5_tokens(self.t5_tokenizer, self.t5, prompt, self.t5_tokens).input_ids)[0][0].float()
        filled = torch.nn.functional.pad(text, (0, long.shape[-1] - text.shape[-1]))
        return {
            "text": torch.cat([filled, long]),
            "pooled": torch.cat([first.text_embeds, second.text_embeds], dim=-1)[0].float(),
        }


def clip_length(tokenizer: CLIPTokenizer, positions: int) -> int:
    """Return the most tokens that a CLIP encoder takes; a tokenizer saved without a length reports 1e30."""
    return min(tokenizer.model_max_length, positions)


def _clip_tokens(tokenizer: CLIPTokenizer, model: CLIPTextModel | CLIPTextModelWithProjection, prompt: str) -> Tensor:
    """Return the token ids [1, token] of a prompt, padded or cut to what the model takes, on the model's device."""
    length = clip_length(tokenizer, model.config.max_position_embeddings)
    words = tokenizer([prompt], padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return words.input_ids.to(model.device)


def _clip_pair(
    tokenizers: tuple[CLIPTokenizer, CLIPTokenizer],
    models: tuple[CLIPTextModel | CLIPTextModelWithProjection, CLIPTextModelWithProjection],
    prompt: str,
) -> tuple[Float[Tensor, "token width"], list[Any]]:
    """Return the hidden states before the last layer of two encoders, side by side, and the outputs of both."""
    outputs: list[Any] = [
        model(input_ids=_clip_tokens(tokenizer, model, prompt), output_hidden_states=True)
        for tokenizer, model in zip(tokenizers, models, strict=True)
    ]
    return torch.cat([output.hidden_states[-2][0] for output in outputs], dim=-1).float(), outputs


def _t5_tokens(tokenizer: T5Tokenizer, model: T5EncoderModel, prompt: str, length: int) -> Any:
    """Return the token ids and the mask of a prompt, padded or cut to a length, on the model's device."""
    words = tokenizer([prompt], padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return words.to(model.device)
