from collections.abc import Sequence

import numpy as np
import pytest
import torch

from slingstone.evaluation.grids import CELL, MARGIN, first_pictures, prompt_grid, to_picture
from slingstone.evaluation.protocol import picture_seed
from slingstone.networks.sampling import Pictures


def test_a_picture_is_rounded_to_8_bits_and_clamped() -> None:
    image = torch.tensor([[[-0.1, 0.5]], [[0.2, 1.0]], [[0.499 / 255, 1.2]]])
    assert np.asarray(to_picture(image)).tolist() == [[[0, 51, 0], [128, 255, 255]]]


def test_every_cell_shows_the_picture_of_its_row_and_column() -> None:
    columns = {"initial": torch.rand(2, 3, 48, 48), "aligned": torch.rand(2, 3, 48, 48)}
    prompts = ["a red disc", "a caption that is much too long for one line, " * 9]
    grid = np.asarray(prompt_grid(columns, prompts))
    corner = grid.shape[0] - 2 * (CELL + MARGIN)
    for column, images in enumerate(columns.values(), start=1):
        for row, image in enumerate(images):
            top, left = corner + row * (CELL + MARGIN), MARGIN + column * (CELL + MARGIN)
            cell = grid[top : top + CELL : 4, left : left + CELL : 4]
            np.testing.assert_array_equal(cell, np.asarray(to_picture(image)))


def test_captions_stay_in_their_cell() -> None:
    long = "a caption that is much too long for one line, " * 20
    plain, written = (np.asarray(prompt_grid({"": torch.ones(2, 3, 48, 48)}, [text, ""])) for text in ("", long))
    changed = np.argwhere((plain != written).any(axis=2))
    top = plain.shape[0] - 2 * (CELL + MARGIN)
    assert len(changed) > 100
    assert changed.min(axis=0)[0] >= top
    assert (changed.max(axis=0) < (top + CELL, CELL + 2 * MARGIN)).all()


@pytest.mark.parametrize(
    ("text", "other"), [("café", "cafè"), ("кот", "кит"), ("一只猫", "一只狗"), ("🐱 hat", "🐶 hat")]
)
def test_prompts_that_are_not_english_are_told_apart(text: str, other: str) -> None:
    first, second = (np.asarray(prompt_grid({"": torch.ones(1, 3, 48, 48)}, [prompt])) for prompt in (text, other))
    assert (first != second).any()


def test_first_pictures_are_of_the_same_noise_as_the_evaluation() -> None:
    def sampler(prompts: Sequence[str], seeds: Sequence[int]) -> Pictures:
        assert list(seeds) == [picture_seed(prompt, 0, 3) for prompt in prompts]
        return Pictures(torch.full((len(prompts), 3, 2, 2), 0.5), 0.0, 1)

    assert first_pictures(sampler, ["a", "b"], seed=3).shape == (2, 3, 2, 2)


def test_a_column_without_a_picture_for_each_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="'aligned' has 2 pictures for 3 prompts"):
        prompt_grid({"aligned": torch.zeros(2, 3, 8, 8)}, ["a", "b", "c"])
