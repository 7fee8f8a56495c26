"""Writes a tiny random SDXL pipeline: every part and every key of the published one, at a thousandth of its size."""

from pathlib import Path

import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from tests import tiny

LATENT_SHAPE = (4, 6, 6)


def pipeline(seed: int = 0) -> StableDiffusionXLPipeline:
    """Return the pipeline; the same seed gives the same weights, and the caller's random state is left alone."""
    # SDXL's second tokenizer pads with an exclamation mark, its first with the end of text.
    words, words_2 = tiny.tokenizer(), tiny.tokenizer(pad_token="!")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=6,
            in_channels=4,
            out_channels=4,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2),
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            cross_attention_dim=32 + 16,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=24 + 6 * 8,
            norm_num_groups=8,
        )
        vae = tiny.autoencoder(4, scaling_factor=0.13025, force_upcast=True)
        text_encoder = CLIPTextModel(tiny.clip_config(words)).eval()
        text_encoder_2 = CLIPTextModelWithProjection(
            tiny.clip_config(words_2, width=16, projection_dim=24, hidden_act="gelu")
        ).eval()
    return StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=text_encoder,
        text_encoder_2=text_encoder_2,
        tokenizer=words,
        tokenizer_2=words_2,
        unet=unet,
        # As published with SDXL-base 1.0.
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type="epsilon",
            steps_offset=1,
            timestep_spacing="leading",
        ),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


def write_pipeline(directory: Path, seed: int = 0) -> Path:
    """Write the pipeline and return the directory."""
    pipeline(seed).save_pretrained(directory)
    return directory
