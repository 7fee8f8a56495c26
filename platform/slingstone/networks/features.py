"""Pictures to features, for distances between sets of pictures; which features they are is part of every number."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import AutoModel, CLIPModel

from slingstone.networks.checkpoint_files import one_line

ExtractorKind = Literal["clip", "dinov2", "inception"]
Extractor = Callable[[Float[Tensor, "batch 3 rows columns"]], Float[Tensor, "batch feature"]]
"""RGB pictures in [0, 1] to features, on the CPU in fp32."""

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def load_extractor(kind: ExtractorKind, checkpoint: str, device: torch.device | str = "cpu") -> Extractor:
    """Return the extractor of a checkpoint.

    Args:
        kind: `clip`, the projected embedding of a CLIP vision tower; `dinov2`, the normalised class token of a DINOv2;
            `inception`, the 2048 pooled features of a TorchScript file that takes 8-bit pictures and
            `return_features`, such as the inception-2015-12-05.pt of the StyleGAN papers.
        checkpoint: directory, hub id or file.
        device: where it runs.

    Raises:
        ValueError: if it cannot be loaded.
    """
    try:
        if kind == "inception":
            script = torch.jit.load(checkpoint, map_location=device).eval()
            return lambda images: _no_graph(lambda: script(_levels(images).to(device), return_features=True))
        if kind == "clip":
            found: Any = CLIPModel
            clip = found.from_pretrained(checkpoint, dtype=torch.float32).eval().to(device)
            prepare = _preparation(checkpoint, clip.config.vision_config.image_size, CLIP_MEAN, CLIP_STD)

            def embed(images: Float[Tensor, "batch 3 rows columns"]) -> Float[Tensor, "batch feature"]:
                pooled = clip.vision_model(prepare(images).to(device)).pooler_output
                return clip.visual_projection(pooled)

            return lambda images: _no_graph(lambda: embed(images))
        dino = AutoModel.from_pretrained(checkpoint, dtype=torch.float32).eval().to(device)
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"features.checkpoint = {checkpoint!r}: cannot be loaded as {kind}: {one_line(error)}"
        ) from error
    prepare = _preparation(checkpoint, 224, IMAGENET_MEAN, IMAGENET_STD)
    return lambda images: _no_graph(lambda: dino(prepare(images).to(device)).pooler_output)


def _no_graph(compute: Callable[[], Tensor]) -> Float[Tensor, "batch feature"]:
    with torch.no_grad():
        return compute().float().cpu()


def _levels(images: Float[Tensor, "batch 3 rows columns"]) -> Tensor:
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def _preparation(
    checkpoint: str, side: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> Callable[[Float[Tensor, "batch 3 rows columns"]], Float[Tensor, "batch 3 side side"]]:
    """Return bicubic resizing to a square and normalisation, by the checkpoint's own numbers where it names them."""
    path = Path(checkpoint) / "preprocessor_config.json"
    if path.is_file():
        own = json.loads(path.read_text(encoding="utf-8"))
        mean, std = own.get("image_mean", mean), own.get("image_std", std)
    middle, scale = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))

    def prepare(images: Float[Tensor, "batch 3 rows columns"]) -> Float[Tensor, "batch 3 side side"]:
        # On the 8-bit grid, as the pictures from files are.
        levels = _levels(images.cpu()).float() / 255
        resized = interpolate(levels, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
        return (resized - middle) / scale

    return prepare
