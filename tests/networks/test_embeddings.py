"""Prompts encoded once: what is read back is what the encoder would say, and never what another encoder said."""

from pathlib import Path

import pytest
import torch

from slingstone.networks.embeddings import EmbeddingStore, fingerprint
from slingstone.networks.latent_diffusion import load
from tests import tiny, tiny_pixart, tiny_sdxl

PROMPTS = ["a red disc", "a white ring", "a red disc"]


@pytest.mark.parametrize(("module", "timestep"), [(tiny, 625), (tiny_sdxl, 399), (tiny_pixart, 440)])
def test_a_stored_encoding_is_the_encoders_own_and_needs_it_no_more(tmp_path: Path, module, timestep: int) -> None:
    directory = str(module.write_pipeline(tmp_path / "pipeline"))
    encoder = load(directory, directory, generator_timestep=timestep).text_encoder
    expected, null = encoder.encode(PROMPTS), encoder.null(2)
    store = EmbeddingStore(tmp_path / "embeddings", fingerprint(encoder))
    encoder.compute_into(store, ["", *PROMPTS])

    later = load(directory, directory, generator_timestep=timestep).text_encoder
    assert fingerprint(later) == fingerprint(encoder)
    later.compute_into(EmbeddingStore(tmp_path / "embeddings", fingerprint(later)), PROMPTS)
    for weight in later.parameters():
        weight.data.fill_(torch.nan)
    found, none = later.encode(PROMPTS), later.null(2)
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.equal(found[name], expected[name])
        assert torch.equal(none[name], null[name])


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
    encoder.encode(PROMPTS)
    encoder.cache_prompts = 7
    assert fingerprint(encoder) in known, "what it remembers is no part of what it is"
