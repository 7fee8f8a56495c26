"""The T5 text encoder of PixArt-alpha, and the size that its networks are told."""

import torch
from torch import Tensor
from transformers import T5EncoderModel, T5Tokenizer

from slingstone.networks.protocol import Condition
from slingstone.networks.text import RememberingEncoder


class PixArtTextEncoder(RememberingEncoder):
    """Prompts to PixArt-alpha's condition.

    `text` [batch, token, width]: T5's last hidden state of the prompt in lower case, padded to `tokens`;
    `mask` [batch, token]: 1 for the prompt's tokens, 0 for padding;
    `resolution` [batch, 2] and `aspect_ratio` [batch, 1] of the (square) pictures.

    Source: arXiv:2310.00426, and the pipeline of diffusers without its optional cleaning of HTML.
    Differs: the null condition is the encoding of the empty prompt; the tensor that stood for it in the original
    code is no part of checkpoints in diffusers' format.
    """

    def __init__(
        self,
        tokenizer: T5Tokenizer,
        model: T5EncoderModel,
        picture_side: int,
        tokens: int = 120,
        cache_prompts: int = 4096,
    ):
        super().__init__(cache_prompts)
        self.tokenizer = tokenizer
        self.model = model
        self.picture_side = picture_side
        self.tokens = tokens

    def null(self, batch: int) -> Condition:
        """Return the condition of the empty prompt, `batch` times."""
        return self.encode([""] * batch)

    def compute(self, prompt: str) -> dict[str, Tensor]:
        """Return the condition of one prompt."""
        words = self.tokenizer(
            [prompt.lower().strip()],
            padding="max_length",
            max_length=self.tokens,
            truncation=True,
            return_tensors="pt",
        ).to(self.model.device)
        side = float(self.picture_side)
        return {
            "text": self.model(words.input_ids, attention_mask=words.attention_mask)[0][0].float(),
            "mask": words.attention_mask[0],
            "resolution": torch.tensor([side, side]),
            "aspect_ratio": torch.ones(1),
        }
