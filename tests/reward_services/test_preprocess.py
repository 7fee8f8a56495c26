import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from reward_services.preprocess import (
    CLIP_MEAN,
    CLIP_STD,
    hps_preprocess,
    imagereward_preprocess,
    pickscore_preprocess,
    square_side,
)
from reward_services.protocol import OVERSHOOT, InvalidRequestError, check_request
from workbench.parity.pictures import as_tensor

RULES = (pickscore_preprocess, hps_preprocess, imagereward_preprocess)
# Portrait and landscape; odd and even excess; shrinking and enlarging.
SHAPES = ((61, 40), (40, 61), (33, 56), (17, 12), (128, 96))


def _picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """A smooth picture with edges, on the 8-bit grid."""
    coarse = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="nearest") * 0.7
    noise = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed + 1)) * 0.3
    return ((smooth + noise) * 255).round() / 255


def _pil(images: torch.Tensor) -> Image.Image:
    return Image.fromarray((images[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))


def _normalised(array: np.ndarray) -> torch.Tensor:
    pixels = torch.from_numpy(array.astype(np.float32) / 255)
    return ((pixels - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)).permute(2, 0, 1)[None]


def _share_different(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Share of values that are not equal; a step of the 8-bit grid is at least .014 after normalisation."""
    assert ours.shape == theirs.shape
    difference = (ours - theirs).abs()
    assert difference.max() < 0.016, "more than one step of the grid"
    return (difference > 1e-3).float().mean().item()


@pytest.mark.parametrize("shape", SHAPES)
def test_exact_pickscore_equals_the_transformers_processor_with_pil(shape: tuple[int, int]):
    images = _picture(*shape)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    theirs = torch.as_tensor(np.array(processor(_pil(images))["pixel_values"]))
    assert _share_different(pickscore_preprocess(24, "exact")(images), theirs) <= 2e-3


@pytest.mark.parametrize("shape", SHAPES)
def test_exact_imagereward_equals_pil_with_the_crop_of_torchvision(shape: tuple[int, int]):
    height, width = shape
    images = _picture(height, width)
    resized = (int(24 * width / height), 24) if height <= width else (24, int(24 * height / width))
    top, left = round((resized[1] - 24) / 2), round((resized[0] - 24) / 2)
    theirs = np.array(_pil(images).resize(resized, Image.Resampling.BICUBIC))[top : top + 24, left : left + 24]
    assert _share_different(imagereward_preprocess(24, "exact")(images), _normalised(theirs)) <= 2e-3


def test_crops_differ_by_one_pixel_only_where_half_an_odd_excess_is_rounded():
    # Excess 3: transformers cuts from 1, torchvision from round(1.5) = 2. Excess 1: both from 0.
    wide = _picture(24, 27)
    pixels = pickscore_preprocess(24, "smooth")(wide), imagereward_preprocess(24, "smooth")(wide)
    assert torch.equal(pixels[0][..., 1:], pixels[1][..., :-1])
    narrow = _picture(24, 25)
    assert torch.equal(pickscore_preprocess(24, "smooth")(narrow), imagereward_preprocess(24, "smooth")(narrow))


def test_hps_resizes_the_longest_side_and_pads_with_black_before_normalising():
    images = torch.full((1, 3, 20, 48), 0.5)
    pixels = hps_preprocess(24, "exact")(images)
    black = -torch.tensor(CLIP_MEAN) / torch.tensor(CLIP_STD)
    grey = (round(0.5 * 255) / 255 - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
    # 10 rows of picture in 24: 7 above, 7 below.
    expected = black.view(1, 3, 1, 1).repeat(1, 1, 24, 24)
    expected[:, :, 7:17] = grey.view(1, 3, 1, 1)
    torch.testing.assert_close(pixels, expected)


def test_hps_puts_the_odd_row_of_padding_below():
    pixels = hps_preprocess(24, "smooth")(torch.full((1, 3, 23, 24), 0.5))
    black = (-torch.tensor(CLIP_MEAN) / torch.tensor(CLIP_STD)).view(3, 1)
    torch.testing.assert_close(pixels[0, :, -1], black.expand(3, 24))
    assert (pixels[0, :, 0] - black).abs().min() > 0.1


def test_hps_resizes_without_rounding_or_clamping():
    edge = torch.zeros(1, 3, 48, 48)
    edge[..., 23:] = 1.0
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (CLIP_MEAN, CLIP_STD))
    resized = hps_preprocess(24, "exact")(edge) * std + mean
    assert resized.max() > 1.01, "bicubic overshoots at an edge"
    assert resized.min() < -0.01


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("mode", ["exact", "smooth"])
def test_a_picture_of_the_models_size_is_only_normalised(rule, mode):
    images = _picture(24, 24)
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (CLIP_MEAN, CLIP_STD))
    torch.testing.assert_close(rule(24, mode)(images), (images - mean) / std)


@pytest.mark.parametrize("rule", RULES)
def test_exact_sees_what_a_saved_png_holds(rule):
    images = torch.rand(1, 3, 31, 45, generator=torch.Generator().manual_seed(3))
    saved = torch.from_numpy(np.array(_pil(images)).astype(np.float32) / 255).permute(2, 0, 1)[None]
    assert torch.equal(rule(24, "exact")(images), rule(24, "exact")(saved))


@pytest.mark.parametrize("rule", RULES)
def test_gradient_of_exact_passes_straight_through_the_rounding(rule):
    images = _picture(61, 40).requires_grad_(True)
    cotangent = torch.randn(1, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    (exact,) = torch.autograd.grad((rule(24, "exact")(images) * cotangent).sum(), images)
    (smooth,) = torch.autograd.grad((rule(24, "smooth")(images) * cotangent).sum(), images)
    # The same linear map, applied in one pass or in two: equal but for fp32 rounding.
    torch.testing.assert_close(exact, smooth, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_smooth_is_differentiable_in_double_precision(rule):
    images = _picture(13, 9).double().requires_grad_(True)
    assert torch.autograd.gradcheck(rule(6, "smooth"), (images,), fast_mode=True)


@pytest.mark.parametrize("rule", RULES)
def test_each_picture_is_preprocessed_alone(rule):
    images = torch.cat([_picture(31, 45, seed) for seed in range(3)])
    together = rule(24, "exact")(images)
    alone = torch.cat([rule(24, "exact")(image[None]) for image in images])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("mode", ["exact", "smooth"])
@pytest.mark.parametrize("shape", [*SHAPES, (24, 24)])
def test_fitting_here_and_normalising_there_is_the_whole_rule_bit_for_bit(rule, mode, shape):
    cotangent = torch.randn(1, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    whole, images = rule(24, mode), (_picture(*shape) * 1.01 - 0.003).requires_grad_(True)  # off the 8-bit grid
    (expected,) = torch.autograd.grad((whole(images) * cotangent).sum(), images)

    fitted = whole.fitted(images)
    inputs = fitted.detach().requires_grad_(True)
    pixels = whole.after_fitting()(inputs)
    assert torch.equal(pixels, whole(images))
    assert fitted.detach().min() >= -OVERSHOOT
    assert fitted.detach().max() <= 1 + OVERSHOOT
    (sent_back,) = torch.autograd.grad((pixels * cotangent).sum(), inputs)
    (gradient,) = torch.autograd.grad(fitted, images, sent_back)
    assert torch.equal(gradient, expected)


def test_a_size_that_is_no_square_is_refused():
    with pytest.raises(ValueError, match=r"image_size=\(224, 336\)"):
        square_side((224, 336), "image_size")


FROM_1_4_TO_4_1 = ((6, 24), (24, 96), (48, 12), (200, 50), (50, 200), (96, 24), (75, 24), (13, 8), (12, 48), (90, 31))

TIES = 5e-3
"""Share of values that may be a step apart: ties, which PIL's fixed-point arithmetic breaks either way."""
GREY_OR_PALETTE = {"L": (75, 24), "P": (200, 50)}


@pytest.mark.parametrize("mode", ["RGB", *GREY_OR_PALETTE])
def test_exact_equals_the_transformers_processor_from_1_4_to_4_1_up_and_down_in_grey_and_of_a_palette(mode: str):
    processor = CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    for shape in FROM_1_4_TO_4_1 if mode == "RGB" else (GREY_OR_PALETTE[mode],):
        picture = _pil(_picture(*shape)).convert(mode)
        theirs = torch.as_tensor(np.array(processor(picture)["pixel_values"]))
        assert _share_different(pickscore_preprocess(24, "exact")(as_tensor(picture)), theirs) <= TIES, shape


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_exact_imagereward_equals_pil_from_1_4_to_4_1_up_and_down_and_in_grey(mode: str):
    for height, width in FROM_1_4_TO_4_1:
        picture = _pil(_picture(height, width)).convert(mode)
        resized = (int(24 * width / height), 24) if height <= width else (24, int(24 * height / width))
        top, left = round((resized[1] - 24) / 2), round((resized[0] - 24) / 2)
        array = np.array(picture.resize(resized, Image.Resampling.BICUBIC).convert("RGB"))
        theirs = _normalised(array[top : top + 24, left : left + 24])
        ours = imagereward_preprocess(24, "exact")(as_tensor(picture))
        assert _share_different(ours, theirs) <= TIES, (height, width)


def test_a_picture_with_alpha_is_refused_since_upstream_has_no_one_reading_of_it():
    """transformers blends it over white, torchvision's rule resizes it and then drops alpha."""
    with pytest.raises(InvalidRequestError, match=r"shape \(1, 4, 24, 24\)"):
        check_request("pickscore", np.zeros((1, 4, 24, 24), np.float32), ["a red circle"])
