"""Open scenes: what captions leave open varies widely, and the oracle sees each flaw for itself."""

from dataclasses import replace

import pytest
import torch

from slingstone.config.experiment import ORACLE_MEASURED
from slingstone.world.captions import Scene, Thing, sample_scenes
from slingstone.world.open_drawing import draw, render, sample_layout
from slingstone.world.open_oracle import Oracle, look

PAIR = Scene((Thing("red", "circle"), Thing("blue", "square")), "gray", "above")
QUALITIES = ["sharpness", "cleanliness", "purity", "regularity"]


def _rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("share_of_pairs", [0.0, 1.0])
@pytest.mark.parametrize(("flaws", "least"), [(0.0, 0.99), (1.0, 0.92)])
def test_the_oracle_reads_drawn_pictures(share_of_pairs, flaws, least):
    scenes = sample_scenes(150, 1, held_out=False, share_of_pairs=share_of_pairs)
    verdict = Oracle()(draw(scenes, _rng(2), flaws), [scene.caption for scene in scenes])
    assert verdict["caption_accuracy"].mean() >= least


def test_pictures_of_one_caption_differ_widely_in_all_that_it_leaves_open():
    layout = sample_layout([PAIR] * 300, _rng(), 0.0)
    assert layout.centre[..., 0].std(0).min() > 8  # pixels of 64: across the relation things go anywhere
    assert layout.centre[..., 1].std(0).min() > 3.5
    assert layout.radius.std(0).min() > 1.4
    assert layout.shade.std(0).min() > 0.1
    assert {-1.0, 0.0, 1.0} == set(layout.outline[:, 0].tolist())
    assert set((layout.crumbs[..., 2] > 0).sum(1).tolist()) == {0, 1, 2, 3}
    offset = layout.centre[:, 1] - layout.centre[:, 0]
    assert (offset[:, 1] > offset[:, 0].abs()).all(), "the relation holds in every picture"


@pytest.mark.parametrize(("quality", "flaw"), zip(QUALITIES, ["softness", "stains", "bleeding", "wobble"], strict=True))
def test_each_flaw_lowers_its_own_measure_and_the_utility(quality, flaw):
    warm = {"red", "orange", "purple"}  # purple that bleeds into green or yellow would leave gray between them
    scenes = [s for s in sample_scenes(300, 5, held_out=False) if {thing.colour for thing in s.things} <= warm][:60]
    captions = [scene.caption for scene in scenes]
    sound = sample_layout(scenes, _rng(), 0.0)
    values = {
        "softness": torch.full((60,), 4.0),
        "stains": torch.tensor([[12.0, 12.0, 8.0, -0.4], [52.0, 50.0, 8.0, 0.4]]).expand(60, 2, 4),
        "bleeding": torch.tensor([0.7, 1.0, 0.0, 0.0]).expand(60, 2, 4) + torch.tensor([0, 0, 0, 4.0]),
        "wobble": torch.stack([0.06 * sound.radius[..., None].expand(60, 2, 3), torch.rand(60, 2, 3)], dim=-1),
    }
    before = Oracle()(render(scenes, sound), captions)
    after = Oracle()(render(scenes, replace(sound, **{flaw: values[flaw]})), captions)
    fall = {name: (before[name] - after[name]).mean().item() for name in QUALITIES}
    assert fall[quality] > 0.08
    assert fall[quality] == max(fall.values())
    assert before["utility"].mean() > after["utility"].mean() + 0.01


@pytest.mark.parametrize(
    ("shown", "claim"),
    [
        (replace(PAIR, relation="below"), "relation"),
        (Scene((PAIR.things[0],), "gray"), "count"),
        (replace(PAIR, things=(PAIR.things[0], Thing("green", "square"))), "colour"),
        (replace(PAIR, background="pink"), "background"),
    ],
)
def test_what_the_caption_does_not_say_is_seen_and_named(shown, claim):
    verdict = Oracle()(draw([shown] * 8, _rng(), 0.0), [PAIR.caption] * 8)
    assert verdict[f"accuracy/{claim}"].max() < 1
    assert verdict["accuracy/two_objects"].max() == 0


def test_crumbs_and_outlines_are_no_things_and_no_stains():
    scenes = [replace(PAIR, background=ground) for ground in ("white", "gray", "black", "pink")] * 10
    layout = sample_layout(scenes, _rng(), 0.0)
    layout.outline[:20], layout.outline[20:] = -1.0, 1.0
    for picture in render(scenes, layout).permute(0, 2, 3, 1).numpy():
        seen = look(picture)
        assert len(seen.things) == 2
        assert seen.stained < 0.02


def test_the_numbers_of_the_oracle_are_those_that_a_configuration_may_name():
    assert sorted(Oracle()(torch.zeros(1, 3, 64, 64), [PAIR.caption])) == sorted(ORACLE_MEASURED["open_scenes"])


def test_pictures_of_another_size_are_refused():
    with pytest.raises(ValueError, match="judges 64 x 64 pictures"):
        Oracle()(torch.zeros(1, 3, 48, 48), [PAIR.caption])
