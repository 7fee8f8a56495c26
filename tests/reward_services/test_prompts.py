"""What rewards make of prompts: cleaning, truncation, and embeddings kept from one request to the next."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from reward_services.models import load
from reward_services.models.clip import ClipSimilarity, open_clip_text, unchanged
from reward_services.spec import RewardSpec

Spec = Callable[..., RewardSpec]
PROMPTS = ["a red circle", "it's a blue square on green", "green"]


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 31, 44, generator=torch.Generator().manual_seed(0))


def test_text_embeddings_are_computed_once_a_prompt(spec: Spec, images: Tensor, monkeypatch: pytest.MonkeyPatch):
    model = load(spec("pickscore"))
    encoded: list[str] = []
    encode = ClipSimilarity._encode

    def counting(self: ClipSimilarity, prompts: list[str]) -> Tensor:
        encoded.extend(prompts)
        return encode(self, prompts)

    monkeypatch.setattr(ClipSimilarity, "_encode", counting)
    first = model.score(images, ["green", "a", "green"])
    again = model.score(images, ["green", "a", "green"])
    assert encoded == ["green", "a"]
    assert torch.equal(first, again)


def test_the_oldest_text_embeddings_make_room(spec: Spec, images: Tensor, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("reward_services.models.clip._CACHED_PROMPTS", 2)
    similarity = load(spec("hps")).similarity
    pixels = images[..., :24, :24]
    for prompts in (["a", "red", "a"], ["green", "a", "a"]):
        similarity(pixels, prompts)
    assert set(similarity._cache) == {"green", "a"}


def test_loading_weights_forgets_the_text_embeddings(spec: Spec, images: Tensor):
    model = load(spec("hps"))
    before = model.score(images, PROMPTS)
    projection = model.similarity.model.text_projection
    projection.load_state_dict({"weight": projection.weight.flip(0)})
    assert not torch.equal(model.score(images, PROMPTS), before)


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("“A  Red\n circle”", '"a red circle"'),
        ("it’s &amp;amp; that", "it's & that"),
        ("cafÃ©", "café"),
        ("  plain ", "plain"),
    ],
)
def test_hps_cleans_prompts_as_open_clip_does(raw: str, clean: str):
    assert open_clip_text(raw) == clean


def test_curly_quotes_are_cleaned_for_hps_and_left_to_the_tokenizer_for_pickscore(spec: Spec, images: Tensor):
    curly, straight = ["it’s “red”"] * 3, ['it\'s "red"'] * 3
    hps, pickscore = load(spec("hps")), load(spec("pickscore"))
    assert torch.equal(hps.score(images, curly), hps.score(images, straight))
    assert not torch.equal(pickscore.score(images, curly), pickscore.score(images, straight))
    assert unchanged(curly[0]) == curly[0]


@pytest.mark.parametrize(("kind", "words"), [("pickscore", 75), ("hps", 75), ("imagereward", 33)])
def test_prompts_are_cut_at_the_published_length(spec: Spec, kind: str, words: int, images: Tensor):
    # 77 CLIP tokens or 35 BERT tokens, two of which mark start and end; every word here is one token.
    model = load(spec(kind))
    full, longer, shorter = (" ".join(["red"] * count) for count in (words, words + 5, words - 1))
    scores = [model.score(images[:1], [prompt]) for prompt in (full, longer, shorter)]
    assert torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[0], scores[2])
