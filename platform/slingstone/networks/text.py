"""Prompts to conditions: what all text encoders share, and the CLIP encoder of Stable Diffusion."""

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from slingstone.networks.embeddings import EmbeddingStore
from slingstone.networks.protocol import Condition


class RememberingEncoder(nn.Module, ABC):
    """Encodes every prompt alone and remembers it.

    So an encoding depends on no other prompt of a batch and on no history: a resumed run sees the same numbers to the
    last bit.

    Args:
        cache_prompts: how many encodings are remembered, the least recently used forgotten first. One takes
            token * width * 4 bytes: 236 KB for Stable Diffusion 1.5, 636 KB for SDXL.
    """

    def __init__(self, cache_prompts: int = 4096):
        super().__init__()
        self.cache_prompts = cache_prompts
        self._cache: OrderedDict[str, dict[str, Tensor]] = OrderedDict()
        self._store: EmbeddingStore | None = None
        self._device: torch.device | None = None

    def encode(self, prompts: Sequence[str]) -> Condition:
        """Return the condition of each prompt, without gradient, on the encoder's device."""
        device = self._device or next(self.parameters()).device
        rows = [self._encoding(prompt) for prompt in prompts]
        return {name: torch.stack([row[name] for row in rows]).to(device) for name in rows[0]}

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
    def null(self, batch: int) -> Condition:
        """Return the unconditional condition, `batch` times."""

    @abstractmethod
    def compute(self, prompt: str) -> dict[str, Tensor]:
        """Return the condition of one prompt, without the batch's axis, in fp32; `encode` remembers it."""

    def _encoding(self, prompt: str) -> dict[str, Tensor]:
        if prompt in self._cache:
            self._cache.move_to_end(prompt)
        else:
            known = self._store is not None and prompt in self._store
            self._cache[prompt] = self._store.read(prompt) if self._store and known else self._computed(prompt)
            if len(self._cache) > self.cache_prompts:
                self._cache.popitem(last=False)
        return self._cache[prompt]

    @torch.no_grad()
    def _computed(self, prompt: str) -> dict[str, Tensor]:
        # In host memory: thousands of encodings would crowd the accelerator.
        return {name: tensor.cpu() for name, tensor in self.compute(prompt).items()}


class ClipTextEncoder(RememberingEncoder):
    """Prompts to `{"text": [batch, token, width]}`, the last hidden state, padded to the encoder's length."""

    def __init__(self, tokenizer: CLIPTokenizer, model: CLIPTextModel, cache_prompts: int = 4096):
        super().__init__(cache_prompts)
        self.tokenizer = tokenizer
        self.model = model

    def null(self, batch: int) -> Condition:
        """Return the encoding of the empty prompt, `batch` times."""
        return self.encode([""] * batch)

    def compute(self, prompt: str) -> dict[str, Tensor]:
        """Return the last hidden state of one prompt."""
        return {
            "text": self.model(input_ids=clip_tokens(self.tokenizer, self.model, prompt)).last_hidden_state[0].float()
        }


def clip_tokens(tokenizer: CLIPTokenizer, model: CLIPTextModel | CLIPTextModelWithProjection, prompt: str) -> Tensor:
    """Return the token ids [1, token] of a prompt, padded or cut to what the model takes, on the model's device."""
    # A tokenizer saved without a length reports 1e30.
    length = min(tokenizer.model_max_length, model.config.max_position_embeddings)
    words = tokenizer([prompt], padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return words.input_ids.to(model.device)


def clip_pair(
    tokenizers: tuple[CLIPTokenizer, CLIPTokenizer],
    models: tuple[CLIPTextModel | CLIPTextModelWithProjection, CLIPTextModelWithProjection],
    prompt: str,
) -> tuple[Float[Tensor, "token width"], list[Any]]:
    """Return the hidden states before the last layer of two encoders, side by side, and the outputs of both."""
    outputs: list[Any] = [
        model(input_ids=clip_tokens(tokenizer, model, prompt), output_hidden_states=True)
        for tokenizer, model in zip(tokenizers, models, strict=True)
    ]
    return torch.cat([output.hidden_states[-2][0] for output in outputs], dim=-1).float(), outputs
