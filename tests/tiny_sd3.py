"""Writes a tiny random Stable Diffusion 3 pipeline: every part and every key of the published one."""

from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from transformers import CLIPTextModelWithProjection, T5EncoderModel

from tests import tiny, tiny_pixart

LATENT_SHAPE = (16, 6, 6)


def pipeline(seed: int = 0) -> StableDiffusion3Pipeline:
    """Return the pipeline; the same seed gives the same weights, and the caller's random state is left alone."""
    words, words_2, words_3 = tiny.tokenizer(), tiny.tokenizer(pad_token="!"), tiny_pixart.tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = SD3Transformer2DModel(
            sample_size=6,
            patch_size=2,
            in_channels=16,
            out_channels=16,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_projection_dim=32,
            joint_attention_dim=64,
            pooled_projection_dim=16 + 24,
            pos_embed_max_size=12,
        )
        vae = tiny.autoencoder(
            16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False
        )
        text_encoder = CLIPTextModelWithProjection(tiny.clip_config(words, projection_dim=16)).eval()
        text_encoder_2 = CLIPTextModelWithProjection(
            tiny.clip_config(words_2, width=16, projection_dim=24, hidden_act="gelu")
        ).eval()
        text_encoder_3 = T5EncoderModel(tiny_pixart.t5_config(words_3, width=64)).eval()
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=words,
        text_encoder_2=text_encoder_2,
        tokenizer_2=words_2,
        text_encoder_3=text_encoder_3,
        tokenizer_3=words_3,
    )


def write_pipeline(directory: Path, seed: int = 0) -> Path:
    """Write the pipeline and return the directory."""
    pipeline(seed).save_pretrained(directory)
    return directory
