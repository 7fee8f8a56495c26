"""The decoder half of a latent diffusion model's autoencoder."""

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor, nn


class VaeDecoder(nn.Module):
    """Latents to pictures: `clamp(vae.decode(latents / scaling_factor + shift_factor) / 2 + 1/2, 0, 1)`.

    Differentiable in the latents; the weights are frozen.

    Args:
        vae: the autoencoder.
        chunk: decode so many pictures at a time, to bound memory; None decodes the whole batch at once.
    """

    def __init__(self, vae: AutoencoderKL, chunk: int | None = None):
        super().__init__()
        self.vae = vae.eval().requires_grad_(False)
        self.chunk = chunk

    def decode(self, latents: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch 3 rows columns"]:
        """Return RGB pictures in [0, 1], fp32."""
        config = self.vae.config
        unscaled = latents / config["scaling_factor"] + (config["shift_factor"] or 0.0)
        parts = unscaled.to(self.vae.dtype).split(self.chunk or len(latents))
        pictures = torch.cat([self.vae.decode(part, return_dict=False)[0] for part in parts]).float()
        return (pictures / 2 + 0.5).clamp(0, 1)
