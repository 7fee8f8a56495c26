"""Published architectures with random weights, and tiny ones of the same kinds: what costs time and memory, no more."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel, UNet2DConditionModel
from torch import Tensor

_VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
_XL = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
}


@dataclass(frozen=True)
class Architecture:
    """A UNet and an autoencoder, as their constructors' arguments.

    Attributes:
        side: of the pictures, in pixels.
        unet: arguments of the UNet.
        vae: arguments of the autoencoder.
        text: width of the text's encodings.
        pooled: width of the pooled encoding; 0 is none.
    """

    side: int
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text: int
    pooled: int = 0

    def network(self) -> Any:
        """Return the UNet on the default device and in the default type."""
        kind: Any = UNet2DConditionModel
        return kind(sample_size=self.side // 8, cross_attention_dim=self.text, **self.unet).eval()

    def autoencoder(self) -> Any:
        """Return the autoencoder on the default device and in the default type."""
        kind: Any = AutoencoderKL
        return kind(**_VAE, **self.vae).eval()

    def condition(self, batch: int) -> dict[str, Tensor]:
        """Return a condition on the default device and in the default type."""
        made = {"text": torch.randn(batch, 77, self.text)}
        if self.pooled:
            made |= {"pooled": torch.randn(batch, self.pooled), "time_ids": torch.full((batch, 6), 64.0)}
        return made


SDXL = Architecture(
    side=1024,
    unet={
        **_XL,
        "block_out_channels": (320, 640, 1280),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    vae={"block_out_channels": (128, 256, 512, 512)},
    text=2048,
    pooled=1280,
)
SD15 = Architecture(
    side=512,
    unet={"block_out_channels": (320, 640, 1280, 1280), "attention_head_dim": 8},
    vae={"block_out_channels": (128, 256, 512, 512)},
    text=768,
)
TINY_SDXL = Architecture(
    side=64,
    unet={
        **_XL,
        "block_out_channels": (32, 64, 64),
        "transformer_layers_per_block": (1, 1, 1),
        "attention_head_dim": (1, 2, 2),
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 64,
        "norm_num_groups": 16,
    },
    vae={"block_out_channels": (16, 16, 32, 32), "norm_num_groups": 8},
    text=32,
    pooled=16,
)
TINY_SD15 = Architecture(
    side=64,
    unet={"block_out_channels": (32, 32, 32, 32), "attention_head_dim": 4, "norm_num_groups": 16},
    vae={"block_out_channels": (16, 16, 32, 32), "norm_num_groups": 8},
    text=32,
)
FLUX_DEV = {"num_layers": 19, "num_single_layers": 38, "num_attention_heads": 24, "guidance_embeds": True}
TINY_FLUX = {
    "num_layers": 1,
    "num_single_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 16,
    "axes_dims_rope": (4, 6, 6),
    "guidance_embeds": True,
}


def flux_call(sizes: Mapping[str, Any], side: int) -> Any:
    """Return a function that evaluates a FLUX transformer of random weights once, for a picture of `side` pixels."""
    kind: Any = FluxTransformer2DModel
    network = kind(**sizes).eval().requires_grad_(False)
    rows = side // 16
    arguments = {
        "hidden_states": torch.randn(1, rows * rows, network.config["in_channels"]),
        "encoder_hidden_states": torch.randn(1, 512, network.config["joint_attention_dim"]),
        "pooled_projections": torch.randn(1, network.config["pooled_projection_dim"]),
        "timestep": torch.ones(1),
        "guidance": torch.full((1,), 3.5),
        "img_ids": torch.cartesian_prod(torch.zeros(1), torch.arange(rows).float(), torch.arange(rows).float()),
        "txt_ids": torch.zeros(512, 3),
    }
    return lambda: network(**arguments, return_dict=False)
