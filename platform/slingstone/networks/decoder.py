"""The decoder half of a latent diffusion model's autoencoder."""

import copy
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from jaxtyping import Float
from torch import Tensor, nn

from slingstone.networks.checkpoint_files import one_line


class VaeDecoder(nn.Module):
    """Latents to pictures: `clamp(vae.decode(latents / scaling_factor + shift_factor) / 2 + 1/2, 0, 1)`.

    Differentiable in the latents; the weights are frozen.

    Args:
        vae: the autoencoder; a tiny one decodes the same latents coarsely, with a fraction of the memory.
        chunk: decode so many pictures at a time, to bound memory; 0 decodes the whole batch at once.
    """

    def __init__(self, vae: AutoencoderKL | AutoencoderTiny, chunk: int = 0):
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


def reward_decoder(
    decoder: VaeDecoder, location: str | None, dtype: torch.dtype, gradient_checkpointing: bool = False
) -> VaeDecoder:
    """Return the decoder of pictures that only the rewards see.

    Args:
        decoder: of the family; shared if nothing else is asked for, and never converted.
        location: an AutoencoderTiny's directory or hub id; None is the family's own.
        dtype: in which it computes.
        gradient_checkpointing: recompute activations in the backward pass, also those of a shared decoder.

    Raises:
        ValueError: if there is no such autoencoder, or its latents are others.
    """
    if location is None:
        vae: Any = decoder.vae if dtype == decoder.vae.dtype else nn.Module.to(copy.deepcopy(decoder.vae), dtype=dtype)
    else:
        vae = _tiny(location, decoder.vae.config["latent_channels"]).to(decoder.vae.device, dtype)
    (vae.enable_gradient_checkpointing if gradient_checkpointing else vae.disable_gradient_checkpointing)()
    return decoder if vae is decoder.vae else VaeDecoder(vae, decoder.chunk)


def _tiny(location: str, channels: int) -> Any:
    try:
        vae: Any = AutoencoderTiny.from_pretrained(location)
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"reward_decoder {location!r} cannot be read as an AutoencoderTiny: {one_line(error)}"
        ) from error
    if vae.config["latent_channels"] != channels:
        raise ValueError(
            f"reward_decoder {location!r} decodes latents of {vae.config['latent_channels']} channels, the reference's "
            f"have {channels}; give the tiny autoencoder of the same family"
        )
    return vae
