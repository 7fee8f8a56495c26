"""The pictures and prompts that both sides judge, and the file in which each of them says what it found.

Imports no transformers: an upstream package decides when that is imported.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

IMAGE_SIZE = 24
# The models' own size, and larger: either way up, square. Not smaller: enlarged to exactly twice the size, many values
# are ties that PIL's fixed-point arithmetic breaks either way, so that one in a thousand is a step of the grid apart.
PICTURE_SIZES = ((24, 24), (31, 44), (61, 40), (48, 48))
PROMPTS = (
    "a red circle",
    "it's a  Blue\nsquare &amp;amp; on “green”",
    "green",
    " ".join(["red circle on a blue square"] * 20),
)
Judge = Callable[[str, Path], tuple[float, Tensor]]
"""Returns score and gradient, given a prompt and a PNG."""


def pictures() -> list[Image.Image]:
    """Return an RGB picture for each of PICTURE_SIZES: soft shades, edges and some noise."""
    generator = np.random.default_rng(0)
    made = []
    for height, width in PICTURE_SIZES:
        coarse = Image.fromarray(generator.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        shades = np.asarray(coarse.resize((width, height), Image.Resampling.BILINEAR), dtype=np.int64)
        shades[height // 3 :, : width // 2] //= 2
        noisy = shades + generator.integers(-20, 21, shades.shape)
        made.append(Image.fromarray(noisy.clip(0, 255).astype(np.uint8)))
    return made


def write_pictures(directory: Path) -> None:
    """Write the pictures as `0.png`, `1.png` and so on."""
    directory.mkdir(parents=True, exist_ok=True)
    for index, picture in enumerate(pictures()):
        picture.save(directory / f"{index}.png")


def as_tensor(picture: Image.Image) -> torch.Tensor:
    """Return a picture as float32 RGB in [0, 1], [1, 3, height, width]."""
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)[None].float() / 255


def record(judge: Judge, pictures: Path, result: Path, versions: Mapping[str, str]) -> None:
    """Have every picture judged, and write scores, gradients and the versions of the packages to a file."""
    tensors: dict[str, Tensor] = {}
    scores = []
    for index, prompt in enumerate(PROMPTS):
        score, tensors[f"gradient.{index}"] = judge(prompt, pictures / f"{index}.png")
        scores.append(score)
    tensors["scores"] = torch.tensor(scores, dtype=torch.float64)
    packages = [f"{name}=={versions[name]}" for name in ("image-reward", "hpsv2x") if name in versions]
    described = {"package": " ".join(packages) or "native", "torchvision": versions.get("torchvision", "none")}
    save_file(tensors, result, metadata={"upstream": json.dumps(described)})
