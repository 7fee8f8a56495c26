import math

import pytest
import torch
from torch.nn import functional

from slingstone.config.experiment import ORACLE_MEASURED
from slingstone.world.captions import COLOURS, Scene, Thing, sample_scenes
from slingstone.world.drawing import draw, render, sample_layout
from slingstone.world.oracle import Oracle


@pytest.mark.parametrize("share_of_pairs", [0.0, 1.0])
@pytest.mark.parametrize("flaws", [0.0, 1.0])
def test_the_oracle_reads_drawn_pictures(share_of_pairs, flaws):
    scenes = sample_scenes(300, 1, held_out=False, share_of_pairs=share_of_pairs)
    pictures = draw(scenes, torch.Generator().manual_seed(2), flaws)
    verdict = Oracle()(pictures, [scene.caption for scene in scenes])
    assert verdict["caption_accuracy"].mean() >= 0.99


def test_a_wrong_colour_is_seen_and_named():
    scene = Scene((Thing("red", "circle", "large"),), "white")
    pictures = draw([scene] * len(COLOURS), torch.Generator().manual_seed(0), 0.0)
    captions = [Scene((Thing(colour, "circle", "large"),), "white").caption for colour in COLOURS]
    verdict = Oracle()(pictures, captions)
    assert verdict["accuracy/colour"].tolist() == [float(colour == "red") for colour in COLOURS]
    assert verdict["accuracy/shape"].min() == 1
    assert verdict["caption_accuracy"].tolist() == verdict["accuracy/colour"].tolist()


def test_captions_of_one_and_of_two_things_are_judged_apart():
    one = Scene((Thing("red", "circle", "large"),), "white")
    two = Scene((Thing("red", "circle"), Thing("blue", "square")), "gray", "above")
    verdict = Oracle()(
        draw([one, two], torch.Generator().manual_seed(0), 0.0), [one.caption, two.caption.replace("above", "below")]
    )
    assert verdict["accuracy/one_object"].nan_to_num(-1).tolist() == [1, -1]
    assert verdict["accuracy/two_objects"].nan_to_num(-1).tolist() == [-1, 0]


def test_the_numbers_of_the_oracle_are_those_that_a_configuration_may_name():
    found = Oracle()(torch.zeros(1, 3, 48, 48), [Scene((Thing("red", "circle", "large"),), "white").caption])
    assert sorted(found) == sorted(ORACLE_MEASURED["scenes"])


def test_swapped_things_break_the_relation():
    first, second = Thing("red", "circle"), Thing("blue", "square")
    shown = Scene((first, second), "gray", "above")
    picture = draw([shown] * 4, torch.Generator().manual_seed(0), 0.0)
    relations = ["above", "below", "to the left of", "to the right of"]
    verdict = Oracle()(picture, [Scene((first, second), "gray", relation).caption for relation in relations])
    assert verdict["accuracy/relation"].tolist() == [1, 0, 0, 0]
    inverse = Oracle()(picture[:1], [Scene((second, first), "gray", "below").caption])
    assert inverse["caption_accuracy"].item() == 1


def test_a_missing_thing_breaks_the_count():
    caption = Scene((Thing("red", "circle"), Thing("blue", "square")), "gray", "above").caption
    picture = draw([Scene((Thing("red", "circle", "small"),), "gray")], torch.Generator().manual_seed(0), 0.0)
    verdict = Oracle()(picture, [caption])
    assert verdict["accuracy/count"].item() == 0
    assert verdict["caption_accuracy"].item() == 0


def _qualities(change) -> tuple[dict, dict]:
    """Verdicts on perfect pictures and on changed ones."""
    scenes = sample_scenes(60, 5, held_out=False, share_of_pairs=0.0)
    rng = torch.Generator().manual_seed(0)
    layout = sample_layout(scenes, rng, 0.0)
    perfect = render(scenes, layout)
    captions = [scene.caption for scene in scenes]
    return Oracle()(perfect, captions), Oracle()(change(scenes, layout, perfect), captions)


def test_blur_lowers_sharpness_and_utility():
    def blurred(scenes, layout, perfect):
        return functional.avg_pool2d(functional.pad(perfect, (2, 2, 2, 2), mode="replicate"), 5, stride=1)

    before, after = _qualities(blurred)
    assert (after["sharpness"] < before["sharpness"] - 0.2).float().mean() > 0.95
    assert after["utility"].mean() < before["utility"].mean() - 0.05


def test_a_dirty_background_lowers_cleanliness_alone():
    def dirty(scenes, layout, perfect):
        stains = 0.1 * torch.rand(len(perfect), 1, 48, 48, generator=torch.Generator().manual_seed(1))
        return (perfect - stains).clamp(0, 1)

    before, after = _qualities(dirty)
    assert before["cleanliness"].min() > 0.99
    assert after["cleanliness"].mean() < 0.85
    assert after["composition"].mean().item() == pytest.approx(before["composition"].mean().item(), abs=0.02)


def test_moving_things_off_centre_lowers_composition_alone():
    def shifted(scenes, layout, perfect):
        return torch.roll(perfect, 8, dims=-1)

    before, after = _qualities(shifted)
    assert after["composition"].mean().item() == pytest.approx(math.exp(-1), abs=0.05)
    assert after["sharpness"].mean().item() == pytest.approx(before["sharpness"].mean().item(), abs=0.02)


def test_pictures_of_another_size_are_refused():
    with pytest.raises(ValueError, match="judges 48 x 48 pictures"):
        Oracle()(torch.zeros(1, 3, 64, 64), ["a small red circle on a white background"])
