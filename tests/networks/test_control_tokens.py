"""Text that looks like a token of control is text, to every encoder whose summary the networks are given."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from slingstone.networks.latent_diffusion import load
from slingstone.networks.protocol import ModelFamily
from tests import tiny_sd3, tiny_sdxl


@pytest.fixture(scope="module", params=[tiny_sdxl, tiny_sd3], ids=["sdxl", "sd3"])
def checkpoints(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tokens")
    request.param.write_pipeline(root / "reference", seed=0)
    request.param.write_pipeline(root / "generator", seed=1)
    return root


@pytest.fixture(scope="module")
def family(checkpoints: Path) -> ModelFamily:
    return load(str(checkpoints / "reference"), str(checkpoints / "generator"), generator_timestep=399)


def test_a_prompt_that_holds_a_control_token_is_text_to_its_end(family: ModelFamily) -> None:
    ended, other = (f"a red{end}ring" for end in ("<|endoftext|>", "<|endoftext|>b"))
    found = family.text_encoder.encode([ended, other, "a red"])["pooled"]
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    usual = family.text_encoder.encode(["a red disc! a", ended])["pooled"][0]
    assert torch.equal(usual, family.text_encoder.encode(["a red disc! a", "a ring"])["pooled"][0])


def test_an_encoder_whose_summary_is_read_elsewhere_is_refused(checkpoints: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(checkpoints / "reference", tmp_path / "reference"))
    described = directory / "text_encoder_2" / "config.json"
    described.write_text(json.dumps(json.loads(described.read_text()) | {"eos_token_id": 7}))
    with pytest.raises(ValueError, match="eos_token_id=7 of the text model reads the prompt's embedding at token 7"):
        load(str(directory), str(checkpoints / "generator"), generator_timestep=399)
