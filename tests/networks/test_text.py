import copy
from pathlib import Path

import torch

from slingstone.networks.protocol import ModelFamily
from slingstone.networks.text import ClipTextEncoder
from tests import tiny

PROMPTS = ["a red disc", "", "a white ring that has far more characters than the encoder has tokens"]


def test_conditions_are_those_of_the_diffusers_pipeline(family: ModelFamily) -> None:
    pipeline = tiny.pipeline(seed=0)
    expected, null = pipeline.encode_prompt(PROMPTS, "cpu", 1, do_classifier_free_guidance=True)
    # The pipeline encodes the prompts as one batch, we one by one: equal up to the order of sums.
    torch.testing.assert_close(family.text_encoder.encode(PROMPTS)["text"], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(family.text_encoder.null(3)["text"], null, rtol=1e-5, atol=1e-5)


def test_the_null_condition_is_the_encoding_of_the_empty_prompt(family: ModelFamily) -> None:
    null, empty = family.text_encoder.null(2)["text"], family.text_encoder.encode([""])["text"]
    assert torch.equal(null, empty.expand_as(null))


def test_an_encoding_does_not_depend_on_what_else_is_encoded(family: ModelFamily) -> None:
    first, second = (copy.deepcopy(family.text_encoder) for _ in range(2))
    together = first.encode(PROMPTS)["text"]
    alone = torch.cat([second.encode([prompt])["text"] for prompt in reversed(PROMPTS)]).flip(0)
    assert torch.equal(together, alone)


def test_encodings_are_remembered_up_to_the_limit_and_carry_no_gradient(family: ModelFamily) -> None:
    computed = []
    encoder = ClipTextEncoder(family.text_encoder.tokenizer, copy.deepcopy(family.text_encoder.model))
    encoder.cache_prompts = 2
    encoder.model.register_forward_pre_hook(lambda *_: computed.append(1))
    encoder.model.requires_grad_(True)
    for prompt, count in (("a", 1), ("b", 2), ("a", 2), ("c", 3), ("a", 3), ("b", 4)):
        assert not encoder.encode([prompt])["text"].requires_grad
        assert len(computed) == count


def test_prompts_are_cut_to_the_length_of_the_encoder_when_the_tokenizer_names_none(tmp_path: Path) -> None:
    words = tiny.tokenizer(tokens=10**30)
    encoder = ClipTextEncoder(words, tiny.pipeline().text_encoder)
    assert encoder.encode(["a" * 100])["text"].shape == (1, tiny.TOKENS, 32)
