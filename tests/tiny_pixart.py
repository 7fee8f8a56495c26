"""Writes a tiny random PixArt-alpha pipeline: every part and every key of the published one.

Stock pipelines of this class take latents of side 32, 64 or 128 only, the last with size and aspect ratio.
"""

from pathlib import Path

import torch
from diffusers import DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from tests import tiny

LATENT_SHAPE = (4, 32, 32)


def tokenizer() -> T5Tokenizer:
    """Return a T5 tokenizer without longer pieces: a token a character."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    return T5Tokenizer(vocab=[*special, *((chr(code), -3.0) for code in range(33, 127))], extra_ids=0)


def t5_config(words: T5Tokenizer, width: int = 32) -> T5Config:
    """Return the configuration of a T5 encoder over the tokenizer's words."""
    return T5Config(
        vocab_size=len(words),
        d_model=width,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        pad_token_id=words.pad_token_id,
        eos_token_id=words.eos_token_id,
    )


def pipeline(seed: int = 0, side: int = 32) -> PixArtAlphaPipeline:
    """Return the pipeline; the same seed gives the same weights, and the caller's random state is left alone."""
    words = tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = PixArtTransformer2DModel(
            sample_size=side,
            in_channels=4,
            out_channels=8,
            num_layers=1,
            num_attention_heads=2,
            attention_head_dim=12,
            cross_attention_dim=24,
            attention_bias=True,
            caption_channels=32,
        )
        vae = tiny.autoencoder(4, scaling_factor=0.18215)
        text_encoder = T5EncoderModel(t5_config(words)).eval()
    return PixArtAlphaPipeline(
        tokenizer=words,
        text_encoder=text_encoder,
        vae=vae,
        transformer=transformer,
        # As published with PixArt-XL-2-512x512.
        scheduler=DPMSolverMultistepScheduler(
            beta_start=0.0001, beta_end=0.02, beta_schedule="linear", prediction_type="epsilon"
        ),
    )


def write_pipeline(directory: Path, seed: int = 0, side: int = 32) -> Path:
    """Write the pipeline and return the directory."""
    pipeline(seed, side).save_pretrained(directory)
    return directory
