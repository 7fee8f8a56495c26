"""A transformer that draws in many steps, on random weights: what one step is measured against."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor


class Rival(NamedTuple):
    """A FLUX-like transformer by arguments of diffusers' `FluxTransformer2DModel`, and what one picture takes of it.

    The defaults of diffusers are FLUX-dev's 12 billion weights; a token of an image is a square of 16 pixels.
    """

    name: str
    transformer: Mapping[str, Any]
    image_tokens: int
    text_tokens: int = 512
    steps: int = 50


FLUX = Rival("a transformer of FLUX-dev's size", {"guidance_embeds": True}, image_tokens=64 * 64)
TINY = Rival(
    "a tiny transformer",
    {
        "num_layers": 1,
        "num_single_layers": 1,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 16,
        "axes_dims_rope": (4, 6, 6),
        "guidance_embeds": True,
    },
    image_tokens=16,
    text_tokens=8,
    steps=2,
)
"""To try the measurement itself."""


def denoiser(rival: Rival, device: torch.device) -> Callable[[], Tensor]:
    """Return what takes all steps of one picture, in bf16, without decoding it."""
    kind: Any = FluxTransformer2DModel
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)  # made in bf16: in fp32 it would take 48 GB
    try:
        with torch.device(device):
            transformer = kind(**rival.transformer).eval()
            config = transformer.config
            tokens = torch.randn(1, rival.image_tokens, config["in_channels"])
            text = torch.randn(1, rival.text_tokens, config["joint_attention_dim"])
            pooled = torch.randn(1, config["pooled_projection_dim"])
            places = torch.zeros(rival.image_tokens, 3), torch.zeros(rival.text_tokens, 3)
            guidance = torch.full((1,), 3.5) if config["guidance_embeds"] else None
    finally:
        torch.set_default_dtype(default)

    @torch.no_grad()
    def denoise() -> Tensor:
        x = tokens
        for step in range(rival.steps):
            t = torch.full((1,), 1 - step / rival.steps, device=device, dtype=torch.bfloat16)
            flow = transformer(
                hidden_states=x,
                encoder_hidden_states=text,
                pooled_projections=pooled,
                timestep=t,
                img_ids=places[0],
                txt_ids=places[1],
                guidance=guidance,
                return_dict=False,
            )[0]
            x = x - flow / rival.steps
        return x

    return denoise
