"""The two text encoders of SDXL, and the size that its networks are told."""

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from slingstone.networks.protocol import Condition
from slingstone.networks.text import RememberingEncoder, clip_pair


class SdxlTextEncoder(RememberingEncoder):
    """Prompts to SDXL's condition.

    `text` [batch, token, width + width_2]: the hidden states before the last layer of both encoders, side by side;
    `pooled` [batch, projection]: the second encoder's projected summary;
    `time_ids` [batch, 6]: (height, width, 0, 0, height, width) of the pictures: their size before and after cropping,
    and the crop's corner.

    Args:
        tokenizers: of both encoders; each pads in its own way.
        models: both encoders.
        picture_side: pixels of a side of the (square) pictures.
        zero_null: whether the unconditional `text` and `pooled` are zeros, as SDXL was trained, or the encoding of
            the empty prompt.
        cache_prompts: see `RememberingEncoder`.

    Source: arXiv:2307.01952, sec. 2.2.
    """

    def __init__(
        self,
        tokenizers: tuple[CLIPTokenizer, CLIPTokenizer],
        models: tuple[CLIPTextModel, CLIPTextModelWithProjection],
        picture_side: int,
        zero_null: bool = True,
        cache_prompts: int = 4096,
    ):
        super().__init__(cache_prompts)
        self.tokenizers = tokenizers
        self.first, self.second = models
        self.picture_side = picture_side
        self.zero_null = zero_null

    def null(self, batch: int) -> Condition:
        """Return the unconditional condition; `time_ids` are the same as with a prompt."""
        empty = self.encode([""] * batch)
        if not self.zero_null:
            return empty
        return {name: tensor if name == "time_ids" else torch.zeros_like(tensor) for name, tensor in empty.items()}

    def compute(self, prompt: str) -> dict[str, Tensor]:
        """Return the condition of one prompt."""
        text, (_, second) = clip_pair(self.tokenizers, (self.first, self.second), prompt)
        side = float(self.picture_side)
        return {
            "text": text,
            "pooled": second.text_embeds[0].float(),
            "time_ids": torch.tensor([side, side, 0.0, 0.0, side, side]),
        }
