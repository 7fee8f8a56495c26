"""Native rewards beside what the upstream packages gave for the same files: see jobs/parity.py."""

import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from reward_services.models.imagereward import ImageReward
from reward_services.spec import RewardKind
from workbench.parity.compare import compare
from workbench.parity.pictures import as_tensor, write_pictures

GOLDEN = Path(__file__).with_name("golden")
WEIGHTS = os.environ.get("SLINGSTONE_REWARD_WEIGHTS")
README_PROMPT = "a painting of an ocean with clouds and birds, day time, low depth field effect"
README_SCORES = (0.5811622738838196, 0.2745276093482971, -1.4131819009780884, -2.029569625854492)


@pytest.mark.parametrize("kind", ["imagereward", "hps", "clip_score", "aesthetic"])
def test_scores_and_gradients_are_those_of_the_upstream_package(kind: RewardKind, rewards_root: Path, tmp_path: Path):
    write_pictures(tmp_path)
    found = compare(kind, rewards_root, tmp_path, GOLDEN / f"{kind}.safetensors")
    assert found.equal, found


@pytest.mark.weights
@pytest.mark.skipif(WEIGHTS is None, reason="SLINGSTONE_REWARD_WEIGHTS names no directory with published weights")
def test_the_published_imagereward_gives_the_scores_of_its_readme():
    """`ImageReward/` there is as on the hub, with BERT's vocab.txt and the README's assets/images/1..4.webp."""
    root = Path(str(WEIGHTS)) / "ImageReward"
    model = ImageReward.load(root).requires_grad_(False).eval()
    pictures = [as_tensor(Image.open(root / f"assets/images/{number}.webp")) for number in (1, 2, 3, 4)]
    scores = torch.cat([model.score(picture, [README_PROMPT]) for picture in pictures])
    torch.testing.assert_close(scores, torch.tensor(README_SCORES), rtol=0, atol=0.02)
