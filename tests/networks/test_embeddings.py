"""Prompts encoded once: what is read back is what the encoder would say, and never what another encoder said."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from slingstone.networks.embeddings import EmbeddingStore, fingerprint
from slingstone.networks.latent_diffusion import load
from slingstone.networks.text import PromptEncoder
from tests import tiny, tiny_pixart, tiny_sd3, tiny_sdxl

PROMPTS = ["a red disc", "a white ring", "a red disc"]


@pytest.mark.parametrize(("module", "timestep"), [(tiny, 625), (tiny_sdxl, 399), (tiny_pixart, 440), (tiny_sd3, 999)])
def test_a_stored_encoding_is_the_encoders_own_and_needs_it_no_more(tmp_path: Path, module, timestep: int) -> None:
    directory = str(module.write_pipeline(tmp_path / "pipeline"))
    encoder = load(directory, directory, generator_timestep=timestep).text_encoder
    expected, null = encoder.encode(PROMPTS), encoder.null(2)
    name = fingerprint(encoder)
    stored(tmp_path, encoder, name).fill(encoder.encode)

    later = load(directory, directory, generator_timestep=timestep).text_encoder
    assert fingerprint(later) == name
    later.read_from(stored(tmp_path, later, name))
    for weight in later.parameters():
        weight.data.fill_(torch.nan)
    found, none = later.encode(PROMPTS), later.null(2)
    assert found.keys() == expected.keys()
    for key in expected:
        # Batches of other sizes may sum in another order.
        torch.testing.assert_close(found[key], expected[key], rtol=0, atol=2e-6)
        torch.testing.assert_close(none[key], null[key], rtol=0, atol=2e-6)


def stored(directory: Path, encoder: PromptEncoder, name: str) -> EmbeddingStore:
    return EmbeddingStore(directory / "embeddings", name, torch.float32, ["", *PROMPTS])


def numbered(prompts: Sequence[str]) -> dict[str, torch.Tensor]:
    """An encoder that says which prompt it was given."""
    numbers = torch.tensor([float(prompt) for prompt in prompts])
    return {"text": numbers.view(-1, 1, 1) / 3, "time_ids": numbers.view(-1, 1)}


def test_a_thousand_prompts_share_a_file_whichever_ranks_encode_them(tmp_path: Path) -> None:
    prompts = [str(number) for number in range(2500)]
    for world in (1, 3):
        for rank in range(world):
            EmbeddingStore(tmp_path / str(world), "encoder", torch.bfloat16, prompts).fill(numbered, rank, world)
    one, three = (sorted((tmp_path / str(world)).rglob("*.safetensors")) for world in (1, 3))
    assert [path.name for path in one] == [path.name for path in three]
    assert len(one) == 3
    assert all(first.read_bytes() == second.read_bytes() for first, second in zip(one, three, strict=True))
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".safetensors"]
    found = EmbeddingStore(tmp_path / "3", "encoder", torch.bfloat16, prompts).read(["2499", "7", "1024", "7"])
    wanted = numbered(["2499", "7", "1024", "7"])
    assert torch.equal(found["text"], wanted["text"].bfloat16())
    assert torch.equal(found["time_ids"], wanted["time_ids"]), "sizes in pixels are not rounded"


def test_a_prompt_that_was_not_encoded_is_never_taken_for_another(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path, "encoder", torch.float32, ["1", "2"])
    store.fill(numbered)
    with pytest.raises(KeyError, match="'3'"):
        store.read(["1", "3"])


def test_other_weights_tokens_or_sizes_are_another_encoder(tmp_path: Path) -> None:
    directory = str(tiny_sdxl.write_pipeline(tmp_path / "pipeline"))
    encoder = load(directory, directory, generator_timestep=399).text_encoder
    known = {fingerprint(encoder)}
    encoder.picture_side = 96
    known.add(fingerprint(encoder))
    next(encoder.parameters()).data[0, 0] += 1e-3
    known.add(fingerprint(encoder))
    encoder.tokenizers[1].pad_token = "#"
    known.add(fingerprint(encoder))
    assert len(known) == 4
    encoder.null(2)
    assert fingerprint(encoder) in known, "what it remembers is no part of what it is"
