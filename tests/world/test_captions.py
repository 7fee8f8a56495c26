import pytest

from slingstone.world.captions import double_scenes, parse, sample_scenes, single_scenes
from workbench.recipe.tokenizers import write_clip_tokenizer


def test_every_caption_parses_back_to_its_scene():
    scenes = [*single_scenes(), *double_scenes()]
    assert len({scene.caption for scene in scenes}) == len(scenes) == 240 + 9600
    assert all(parse(scene.caption) == scene for scene in scenes)


def test_captions_read_as_english():
    captions = {scene.caption for scene in single_scenes()} | {scene.caption for scene in double_scenes()}
    assert "a small red circle on a white background" in captions
    assert "an orange ring to the left of a blue square on a pink background" in captions
    assert not any(" a orange" in caption or caption.startswith("a orange") for caption in captions)


def test_no_held_out_combination_is_ever_sampled_for_training():
    def triples(scenes):
        return {(thing.colour, thing.shape, scene.background) for scene in scenes for thing in scene.things}

    seen = triples(sample_scenes(5000, 0, held_out=False))
    held_out = triples(scene for scene in single_scenes() if scene.held_out)
    assert not seen & held_out
    assert len(seen) == 100
    assert len(held_out) == 20


def test_every_pair_of_attributes_of_a_held_out_triple_is_seen_in_training():
    seen = sample_scenes(5000, 0, held_out=False)
    pairs = {pair for scene in seen for thing in scene.things for pair in _pairs(thing, scene)}
    held_out = [scene for scene in single_scenes() if scene.held_out]
    assert {pair for scene in held_out for pair in _pairs(scene.things[0], scene)} <= pairs


def _pairs(thing, scene):
    return {(thing.colour, thing.shape), (thing.colour, scene.background), (thing.shape, scene.background)}


def test_an_unknown_caption_is_refused_with_an_example():
    with pytest.raises(ValueError, match="'a red dog' is no sentence of the scenes world; one is 'a small"):
        parse("a red dog")


def test_each_word_of_a_caption_is_one_token_and_ends_with_the_highest_id(tmp_path):
    tokenizer = write_clip_tokenizer(tmp_path, 24)
    for scene in sample_scenes(200, 0, held_out=True):
        tokens = tokenizer(scene.caption).input_ids
        assert len(tokens) == len(scene.caption.split()) + 2
        assert tokens[-1] == max(tokenizer.get_vocab().values()) == tokenizer.eos_token_id
