"""Writes a tiny random Stable Diffusion pipeline: the layout of a real checkpoint at a thousandth of its size.

The shapes are those of the embedded world (8x6x6 latents, 48 px pictures), so that whatever runs on it runs there.
"""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

LATENT_SHAPE = (8, 6, 6)
IMAGE_SIZE = 48
TOKENS = 24


def tokenizer(tokens: int = TOKENS, **config: str) -> CLIPTokenizer:
    """Return a byte-level CLIP tokenizer without merges: a token a character."""
    # CLIP names byte 0x20 + n by the character of that code; lower-case ASCII is all that the fixture's prompts need.
    characters = [chr(code) for code in range(33, 127)]
    names = [*characters, *(character + "</w>" for character in characters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={name: i for i, name in enumerate(names)}, merges=[], model_max_length=tokens, **config)


def autoencoder(channels: int, **config: object) -> AutoencoderKL:
    """Return the VAE of 48 px pictures and 6x6 latents of so many channels."""
    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=IMAGE_SIZE,
        **config,
    )


def clip_config(words: CLIPTokenizer, width: int = 32, **config: object) -> CLIPTextConfig:
    """Return the configuration of a CLIP text encoder over the tokenizer's words."""
    return CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        **config,
    )


def pipeline(seed: int = 0, prediction_type: str = "epsilon") -> StableDiffusionPipeline:
    """Return the pipeline; the same seed gives the same weights, and the caller's random state is left alone."""
    words = tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=6,
            in_channels=8,
            out_channels=8,
            block_out_channels=(32, 32),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=8,
            norm_num_groups=8,
        )
        vae = autoencoder(8, scaling_factor=0.7)
        text_encoder = CLIPTextModel(clip_config(words)).eval()
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=words,
        unet=unet,
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            prediction_type=prediction_type,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def write_pipeline(
    directory: Path, seed: int = 0, prediction_type: str = "epsilon", dtype: torch.dtype = torch.float32
) -> Path:
    """Write the pipeline in safetensors of `dtype` and return the directory."""
    tiny = pipeline(seed, prediction_type)
    for module in (tiny.unet, tiny.vae, tiny.text_encoder):
        torch.nn.Module.to(module, dtype=dtype)
    tiny.save_pretrained(directory)
    return directory


def write_prompts(path: Path, count: int = 12) -> Path:
    """Write `count` distinct prompts (12 at most differ by colour and shape, the rest by a number), one a line."""
    colours, shapes = ("red", "green", "blue", "white"), ("disc", "square", "ring")
    kinds = [f"a {colour} {shape}" for shape in shapes for colour in colours]
    lines = [kinds[i % len(kinds)] + (f" {i // len(kinds)}" if i >= len(kinds) else "") for i in range(count)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
