"""An SDXL pipeline and a PickScore of published size, random weights, in the layouts in which they are published.

At full size 7 GB and 4 GB, some ten seconds on a GPU. Their tokenizers are those of the embedded scenes, which the text
encoders are told of: the end of a text is token 224 there.
"""

import shutil
from pathlib import Path
from typing import Any

import torch

TOKENS = {
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "bos_token_id": 223,
    "eos_token_id": 224,
    "pad_token_id": 224,
}


def sizes(tiny: bool) -> dict[str, dict[str, Any]]:
    """Return the arguments of the text encoders and of the reward."""
    if tiny:
        small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        # What the tiny UNet is told: 64 channels of text, 16 of them pooled.
        return {
            "text": {**small, "hidden_size": 48},
            "text_2": {**small, "projection_dim": 16},
            "reward_text": small,
            "reward_vision": {**small, "image_size": 28, "patch_size": 14},
            "reward": {"projection_dim": 16},
        }
    return {
        "text": tower(768, 12, 12, hidden_act="quick_gelu"),
        "text_2": tower(1280, 32, 20, projection_dim=1280),
        "reward_text": tower(1024, 24, 16),
        "reward_vision": tower(1280, 32, 16, image_size=224, patch_size=14),
        "reward": {"projection_dim": 1024},
    }


def tower(width: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    """Return the arguments of a CLIP tower."""
    wide = {"hidden_size": width, "intermediate_size": 4 * width}
    return {**wide, "num_hidden_layers": layers, "num_attention_heads": heads, "hidden_act": "gelu", **more}


def write(out: Path, device: torch.device, tiny: bool) -> None:
    """Write `out/sdxl`, a pipeline in bf16, and `out/pickscore`, in fp32."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import (
        CLIPConfig,
        CLIPModel,
        CLIPTextConfig,
        CLIPTextModel,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
    )

    from slingstone.config import paths
    from workbench.benchmark.architecture import SDXL, sdxl_like

    scenes = paths.ROOT / "platform/slingstone/world/scenes"
    size, architecture = sizes(tiny), sdxl_like(side=8, width=32, depth=1) if tiny else SDXL
    torch.manual_seed(0)
    with device:
        unet = UNet2DConditionModel(**architecture.unet)
        vae = AutoencoderKL(**architecture.vae | {"scaling_factor": 0.13025})
        text = CLIPTextModel(CLIPTextConfig(**TOKENS, **size["text"]))
        text_2 = CLIPTextModelWithProjection(CLIPTextConfig(**TOKENS, **size["text_2"]))
        towers = {"text_config": TOKENS | size["reward_text"], "vision_config": size["reward_vision"]}
        reward = CLIPModel(CLIPConfig(**towers, **size["reward"]))
    tokenizer = CLIPTokenizer.from_pretrained(scenes / "reference/tokenizer")
    pipeline = StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=text,
        text_encoder_2=text_2,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            timestep_spacing="leading",
            steps_offset=1,
        ),
        add_watermarker=False,
    )
    for module in (unet, vae, text, text_2):
        module.to(torch.bfloat16)
    pipeline.save_pretrained(out / "sdxl")
    reward.save_pretrained(out / "pickscore")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(scenes / "rewards/pickscore" / name, out / "pickscore" / name)
