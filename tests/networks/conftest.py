from pathlib import Path

import pytest

from slingstone.networks.latent_diffusion import load
from slingstone.networks.protocol import ModelFamily
from tests import tiny


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a `reference` and a `generator` of other weights."""
    root = tmp_path_factory.mktemp("checkpoints")
    tiny.write_pipeline(root / "reference", seed=0)
    tiny.write_pipeline(root / "generator", seed=1)
    return root


@pytest.fixture(scope="session")
def family(checkpoints: Path) -> ModelFamily:
    return load(str(checkpoints / "reference"), str(checkpoints / "generator"), generator_timestep=625)
