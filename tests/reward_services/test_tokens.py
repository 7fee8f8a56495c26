"""What a user writes is text, and the summary of a prompt is read where the prompt ends."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import BertTokenizer, CLIPTextConfig, CLIPTokenizer, PreTrainedTokenizerBase

from reward_services.models import load
from reward_services.models.imagereward import ImageReward
from reward_services.models.tokens import check_summary, tokens_of
from reward_services.spec import RewardSpec
from tests import tiny, tiny_pixart

Spec = Callable[..., RewardSpec]
END = {"pickscore": "<|endoftext|>", "hps": "<|ENDoftext|>", "clip_score": "<|endoftext|>", "imagereward": "[SEP]"}


@pytest.mark.parametrize("kind", END)
def test_a_reward_reads_on_behind_what_looks_like_the_end_of_a_prompt(spec: Spec, kind: str):
    model, end = load(spec(kind)), END[kind]
    image = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    # Punctuation is a word of its own to these tokenizers, with and without spaces around.
    apart = " ".join(
        ["a red circle", end[:2], end[2:-2], end[-2:], "on green"]
        if len(end) > 9
        else ["a red circle", end[0], end[1:-1], end[-1], "on green"]
    )
    whole = model.score(image, [f"a red circle {end} on green"])
    assert torch.equal(whole, model.score(image, [apart]))
    assert not torch.equal(whole, model.score(image, ["a red circle"]))
    assert not torch.equal(whole, model.score(image, [f"a red circle {end} on red"]))


def _clip(rewards_root: Path) -> PreTrainedTokenizerBase:
    return CLIPTokenizer.from_pretrained(str(rewards_root / "tokenizer"))


def _bert(rewards_root: Path) -> PreTrainedTokenizerBase:
    return BertTokenizer.from_pretrained(str(rewards_root / "bert"))


@pytest.mark.parametrize("words", [_clip, _bert, lambda root: tiny_pixart.tokenizer()])
def test_no_control_token_comes_from_a_prompt_nor_moves_those_of_its_neighbours(
    rewards_root: Path, words: Callable[[Path], PreTrainedTokenizerBase]
):
    tokenizer = words(rewards_root)
    marked = [f"a {token} a" for token in tokenizer.all_special_tokens]
    texts = ["a red circle", *marked, "a"]
    ids, mask = tokens_of(tokenizer, texts, 32)
    plain = tokens_of(tokenizer, ["a red circle", "a"], 32)
    assert torch.equal(ids[[0, -1]], plain[0])
    assert torch.equal(mask[[0, -1]], plain[1])
    unknown = {tokenizer.unk_token_id} - {tokenizer.eos_token_id}  # which stands for any character, to tiny BERT
    control = {tokenizer.convert_tokens_to_ids(token) for token in tokenizer.all_special_tokens} - unknown
    usual = int(torch.isin(plain[0][1][plain[1][1].bool()], torch.tensor(sorted(control))).sum())
    for row, read in zip(ids[1:-1], mask[1:-1], strict=True):
        found = [token for token in row[read.bool()].tolist() if token in control]
        assert len(found) == usual, "the begin and the end alone"


def test_a_padding_token_that_is_a_character_is_read_as_published():
    tokenizer = tiny.tokenizer(pad_token="!")
    expected = tokenizer(["wow! a"], padding="max_length", max_length=24, return_tensors="pt").input_ids
    assert torch.equal(tokens_of(tokenizer, ["wow! a"], 24)[0], expected)


def test_a_summary_that_would_be_read_elsewhere_is_refused():
    words = tiny.tokenizer()
    good = tiny.clip_config(words)
    check_summary(words, good)
    check_summary(words, CLIPTextConfig(**good.to_dict() | {"eos_token_id": 2}))
    with pytest.raises(
        ValueError, match=f"the prompt's embedding at token 7, but the tokenizer ends .* {len(words) - 1}"
    ):
        check_summary(words, CLIPTextConfig(**good.to_dict() | {"eos_token_id": 7}))
    words.add_tokens(["<my-cat>"])
    with pytest.raises(ValueError, match="tokenizer has 191 tokens, the CLIP text model only 190"):
        check_summary(words, good)
    larger = good.to_dict() | {"vocab_size": 191}
    check_summary(words, CLIPTextConfig(**larger))
    with pytest.raises(ValueError, match="the prompt's embedding at token 190"):  # the added one, were it in a prompt
        check_summary(words, CLIPTextConfig(**larger | {"eos_token_id": 2}))


def test_a_tokenizer_that_begins_prompts_where_imagereward_does_not_look_is_refused(rewards_root: Path):
    reward = ImageReward.load(rewards_root / "imagereward")
    reward.tokenizer._tokenizer.post_processor = None
    with pytest.raises(ValueError, match=r"tokenizer begins prompts with token \d+, not with '\[CLS\]'"):
        ImageReward(reward.vision, reward.text, reward.mlp, reward.tokenizer)
