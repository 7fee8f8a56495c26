"""Pictures as the upstream packages take them."""

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor


def to_pil(image: Float[Tensor, "1 3 height width"]) -> Image.Image:
    """Return what a saved PNG of an RGB picture in [0, 1] holds."""
    levels = (image[0].detach().clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    return Image.fromarray(np.ascontiguousarray(levels.cpu().numpy()))
