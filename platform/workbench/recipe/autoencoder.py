"""Stage 1: the autoencoder; of the first edition, 48 px pictures to 4 x 12 x 12 latents."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor

from slingstone.world.captions import sample_scenes
from slingstone.world.editions import Edition
from workbench.recipe.fit import fit
from workbench.recipe.settings import Autoencoder, Training

_KL_WEIGHT = 1e-4
_SQUARE_WEIGHT = 4.0
_JITTER = 0.05  # noise on latents, of standard deviation about 2, that the decoder must bear


def new_autoencoder(settings: Autoencoder, size: int) -> AutoencoderKL:
    """Return the untrained network: Stable Diffusion's architecture, each level after the first halving pictures."""
    levels = len(settings.channels)
    config: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": settings.channels,
        "layers_per_block": 1,
        "latent_channels": settings.latent_channels,
        "norm_num_groups": 4,
        "mid_block_add_attention": False,
        "sample_size": size,
    }
    return AutoencoderKL(**config)


def reconstruction_loss(
    output: Float[Tensor, "batch 3 rows columns"], target: Float[Tensor, "batch 3 rows columns"]
) -> Float[Tensor, ""]:
    """Weighted mean square error (learns colours fast) plus mean absolute error (crisp edges)."""
    error = output - target
    return _SQUARE_WEIGHT * error.square().mean() + error.abs().mean()


def train_autoencoder(settings: Autoencoder, edition: Edition, seed: int, kept: Path | None = None) -> AutoencoderKL:
    """Train on drawn scenes (no held-out combination) and set `scaling_factor` so that latents have unit variance.

    The state from which an interrupted training goes on is kept in a file.
    """
    torch.manual_seed(seed)
    vae, rng = new_autoencoder(settings, edition.size), torch.Generator().manual_seed(seed)
    if settings.start:
        vae.load_state_dict(AutoencoderKL.from_pretrained(settings.start).float().state_dict())

    def loss(step: int) -> Tensor:
        pictures = _pixels(edition, settings.batch, seed + step, rng)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = _posterior(vae, pictures)
            output = vae.decode(posterior.sample(), return_dict=False)[0]
        divergence = posterior.kl().mean() / posterior.mean[0].numel()
        return reconstruction_loss(output.float(), pictures) + _KL_WEIGHT * divergence

    fit(list(vae.parameters()), loss, settings, "autoencoder", kept=kept, streams=[rng])
    vae.eval().requires_grad_(False)
    rng = torch.Generator().manual_seed(seed)
    latents = encode(vae, edition.draw(sample_scenes(512, seed - 1, held_out=False), rng))
    vae.register_to_config(scaling_factor=round(1.0 / latents.std().item(), 5))
    return vae


def sharpen_decoder(
    vae: AutoencoderKL, settings: Training, edition: Edition, seed: int, kept: Path | None = None
) -> None:
    """Train the decoder on, in place, on mean absolute error alone; latents keep their meaning."""
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed)
    weights = [w for name, w in vae.named_parameters() if name.startswith(("decoder.", "post_quant_conv."))]
    for weight in weights:
        weight.requires_grad_(True)

    def loss(step: int) -> Tensor:
        pictures = _pixels(edition, settings.batch, seed + step, rng)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                latents = _posterior(vae, pictures).mean
            output = vae.decode(latents + _JITTER * torch.randn_like(latents), return_dict=False)[0]
        return (output.float() - pictures).abs().mean()

    fit(weights, loss, settings, "decoder", kept=kept, streams=[rng])
    vae.eval().requires_grad_(False)


def _pixels(edition: Edition, batch: int, seed: int, rng: torch.Generator) -> Float[Tensor, "batch 3 rows columns"]:
    """Draw training scenes, in [-1, 1]."""
    return 2 * edition.draw(sample_scenes(batch, seed, held_out=False), rng) - 1


@torch.no_grad()
def encode(
    vae: AutoencoderKL, pictures: Float[Tensor, "batch 3 rows columns"], chunk: int = 128
) -> Float[Tensor, "batch channel height width"]:
    """Return the posterior means, unscaled."""
    return torch.cat([_posterior(vae, 2 * part - 1).mean for part in pictures.split(chunk)])


def _posterior(vae: AutoencoderKL, pixels: Float[Tensor, "batch 3 rows columns"]) -> Any:
    return vae.encode(pixels, return_dict=False)[0]
