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
    # Other code for the same formula: equal up to the order of sums.
    torch.testing.assert_close(family.text_encoder.encode(PROMPTS)["text"], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(family.text_encoder.null(3)["text"], null, rtol=1e-5, atol=1e-5)


def test_the_null_condition_is_the_encoding_of_the_empty_prompt(family: ModelFamily) -> None:
    null, empty = family.text_encoder.null(2)["text"], family.text_encoder.encode([""])["text"]
    assert torch.equal(null, empty.expand_as(null))


def test_an_encoding_does_not_depend_on_what_else_is_encoded(family: ModelFamily) -> None:
    together = family.text_encoder.encode(PROMPTS)["text"]
    alone = torch.cat([family.text_encoder.encode([prompt])["text"] for prompt in reversed(PROMPTS)]).flip(0)
    assert torch.equal(together, alone)


def test_a_batch_is_encoded_in_one_pass_and_the_empty_prompt_once(family: ModelFamily) -> None:
    passes = []
    encoder = ClipTextEncoder(family.text_encoder.tokenizer, copy.deepcopy(family.text_encoder.model))
    encoder.model.register_forward_pre_hook(lambda *_: passes.append(1))
    encoder.model.requires_grad_(True)
    assert not encoder.encode(PROMPTS)["text"].requires_grad
    assert len(passes) == 1
    for batch in (1, 3, 1):
        assert len(encoder.null(batch)["text"]) == batch
    assert len(passes) == 2


def test_training_encodes_in_bf16_what_evaluations_encode_in_fp32_with_the_same_weights(family: ModelFamily) -> None:
    exact = family.text_encoder.encode(PROMPTS)["text"]
    rounding = family.text_encoder.rounding(torch.bfloat16)
    rounded = rounding.encode(PROMPTS)["text"].float()
    error = torch.linalg.vector_norm(rounded - exact) / torch.linalg.vector_norm(exact)
    # A bf16 number is right to 2^-9 = 2e-3; some tens of roundings in a row.
    assert 1e-4 < error < 3e-2
    assert torch.equal(family.text_encoder.encode(PROMPTS)["text"], exact)
    assert next(rounding.parameters()) is next(family.text_encoder.parameters())


def test_prompts_are_cut_to_the_length_of_the_encoder_when_the_tokenizer_names_none(tmp_path: Path) -> None:
    words = tiny.tokenizer(tokens=10**30)
    encoder = ClipTextEncoder(words, tiny.pipeline().text_encoder)
    assert encoder.encode(["a" * 100])["text"].shape == (1, tiny.TOKENS, 32)
