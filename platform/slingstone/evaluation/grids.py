"""Tensors to pictures for people, and back: a grid with a row a prompt and a column a model."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from jaxtyping import Float
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from slingstone.evaluation.protocol import picture_seed
from slingstone.networks.sampling import Sampler

CELL = 192
"""Smallest width of a picture in a grid, in pixels; smaller pictures are enlarged by a whole factor."""

TEXT_SIZE = 15
FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
"""Of Latin, Greek, Cyrillic and Arabic letters; Pillow's own has those of English alone."""
MARGIN = 8


def to_picture(image: Float[Tensor, "3 rows columns"]) -> Image.Image:
    """Return the picture, rounded to 8 bits."""
    levels = (image.detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())


def from_picture(picture: Image.Image) -> Float[Tensor, "3 rows columns"]:
    """Return a picture's RGB in [0, 1]."""
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).float() / 255


def first_pictures(sampler: Sampler, prompts: Sequence[str], seed: int = 0) -> Float[Tensor, "batch 3 rows columns"]:
    """Return the first picture of each prompt, of the same noise as in `evaluate` with this seed."""
    return sampler(prompts, [picture_seed(prompt, 0, seed) for prompt in prompts]).images


def prompt_grid(columns: Mapping[str, Float[Tensor, "batch 3 rows columns"]], prompts: Sequence[str]) -> Image.Image:
    """Draw a row a prompt, its text on the left, and a column a model, its name above.

    Args:
        columns: pictures by the name of the model, one for each prompt, all of one size.
        prompts: what the pictures are of.

    Raises:
        ValueError: if a column has not one picture for each prompt.
    """
    for name, images in columns.items():
        if len(images) != len(prompts):
            raise ValueError(f"column {name!r} has {len(images)} pictures for {len(prompts)} prompts")
    font = ImageFont.truetype(FONT, TEXT_SIZE)
    rows, width = next(iter(columns.values())).shape[2:]
    factor = max(1, -(-CELL // width))
    cell_width, cell_height = width * factor, rows * factor
    title_height = TEXT_SIZE + 2 * MARGIN
    size = ((len(columns) + 1) * (cell_width + MARGIN) + MARGIN, title_height + len(prompts) * (cell_height + MARGIN))
    grid = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(grid)
    for row, prompt in enumerate(prompts):
        top = title_height + row * (cell_height + MARGIN)
        text = _wrapped(_shown(prompt), cell_width, cell_height, font)
        draw.multiline_text((MARGIN, top + cell_height / 2), text, "black", font, anchor="lm", spacing=4)
    for column, (name, images) in enumerate(columns.items(), start=1):
        left = MARGIN + column * (cell_width + MARGIN)
        draw.text((left, MARGIN), name, "black", font)
        for row, image in enumerate(images):
            # Nearest: what one sees is what the model drew.
            cell = to_picture(image).resize((cell_width, cell_height), Image.Resampling.NEAREST)
            grid.paste(cell, (left, title_height + row * (cell_height + MARGIN)))
    return grid


def _shown(text: str) -> str:
    """Return a text in which what the font lacks is its code, such as \\u4e00: boxes would all look alike."""
    has = FT2Font(str(FONT)).get_char_index
    return "".join(letter if has(ord(letter)) else ascii(letter)[1:-1] for letter in text)


def _wrapped(text: str, width: int, height: int, font: ImageFont.FreeTypeFont) -> str:
    characters = max(1, int(width / font.getlength("n")))
    lines = max(1, int(height / (TEXT_SIZE + 6)))
    return "\n".join(textwrap.wrap(text, characters, max_lines=lines, placeholder=" ..."))
