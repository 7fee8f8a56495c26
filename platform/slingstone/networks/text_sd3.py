"""The three text encoders of Stable Diffusion 3."""

import torch
from torch import Tensor
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from slingstone.networks.protocol import Condition
from slingstone.networks.text import RememberingEncoder, clip_pair


class Sd3TextEncoder(RememberingEncoder):
    """Prompts to Stable Diffusion 3's condition.

    `text` [batch, token, width]: the hidden states before the last layer of both CLIP encoders, side by side and filled
    up with zeros to T5's width, then T5's last hidden state;
    `pooled` [batch, projections]: both CLIP encoders' projected summaries, side by side.

    Args:
        clip_tokenizers: of both CLIP encoders.
        clips: both CLIP encoders.
        t5_tokenizer: of T5.
        t5: the third encoder.
        t5_tokens: length to which T5's prompts are padded or cut.
        cache_prompts: see `RememberingEncoder`.

    Source: arXiv:2403.03206, sec. 4 and fig. 2.
    """

    def __init__(
        self,
        clip_tokenizers: tuple[CLIPTokenizer, CLIPTokenizer],
        clips: tuple[CLIPTextModelWithProjection, CLIPTextModelWithProjection],
        t5_tokenizer: T5Tokenizer,
        t5: T5EncoderModel,
        t5_tokens: int = 256,
        cache_prompts: int = 4096,
    ):
        super().__init__(cache_prompts)
        self.clip_tokenizers = clip_tokenizers
        self.first, self.second = clips
        self.t5_tokenizer = t5_tokenizer
        self.t5 = t5
        self.t5_tokens = t5_tokens

    def null(self, batch: int) -> Condition:
        """Return the condition of the empty prompt, `batch` times."""
        return self.encode([""] * batch)

    def compute(self, prompt: str) -> dict[str, Tensor]:
        """Return the condition of one prompt."""
        text, (first, second) = clip_pair(self.clip_tokenizers, (self.first, self.second), prompt)
        words = self.t5_tokenizer(
            [prompt], padding="max_length", max_length=self.t5_tokens, truncation=True, return_tensors="pt"
        )
        # Without a mask: that is how the networks were trained.
        long = self.t5(words.input_ids.to(self.t5.device))[0][0].float()
        filled = torch.nn.functional.pad(text, (0, long.shape[-1] - text.shape[-1]))
        return {
            "text": torch.cat([filled, long]),
            "pooled": torch.cat([first.text_embeds, second.text_embeds], dim=-1)[0].float(),
        }
