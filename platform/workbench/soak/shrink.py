"""Networks whose step takes a tenth of a second: nothing of their pictures matters, only that every bit returns."""

import json
import shutil
from pathlib import Path

import torch

SHAPE = {
    "block_out_channels": (64,),
    "down_block_types": ("DownBlock2D",),
    "mid_block_type": None,
    "up_block_types": ("UpBlock2D",),
    "norm_num_groups": 8,
}
"""One level without attention: six times faster than the smallest with it."""


def shrink(pipeline: Path, target: Path, seed: int) -> Path:
    """Copy a pipeline, with a fresh UNet of `SHAPE` in place of its own; return the copy.

    Args:
        pipeline: a directory in diffusers' layout.
        target: what was there is replaced.
        seed: of the weights.

    Raises:
        ValueError: it is no local pipeline with a UNet.
    """
    from diffusers import UNet2DConditionModel

    if not (pipeline / "unet").is_dir():
        raise ValueError(f"models = {str(pipeline)!r}: a soak needs a local pipeline with a UNet; name one")
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(pipeline, target)
    shape = json.loads((pipeline / "unet" / "config.json").read_text())
    shape |= SHAPE
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(**{name: value for name, value in shape.items() if not name.startswith("_")})
    shutil.rmtree(target / "unet")
    unet.save_pretrained(target / "unet")
    return target
