"""A service is the reward that is meant if it gives the same scores, whatever it is called."""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from reward_services.deployment import RewardService
from reward_services.identity import differences, identity
from reward_services.models.checkpoints import read_state_dict
from reward_services.models.hps import PUBLISHED_FILE
from reward_services.spec import RewardSpec

Spec = Callable[..., RewardSpec]


@pytest.fixture(scope="module")
def described(rewards_root: Path) -> dict[str, Any]:
    """What a replica of the tiny HPS says of itself."""
    spec = RewardSpec(name="hps", model="hps", checkpoint=str(rewards_root / "hps"))
    return asyncio.run(RewardService(spec.model_dump()).describe())


@pytest.fixture
def other_weights(rewards_root: Path, tmp_path: Path) -> str:
    directory = Path(shutil.copytree(rewards_root / "hps", tmp_path / "other"))
    state = read_state_dict(directory / PUBLISHED_FILE)
    state["visual.proj"].mul_(-1)
    torch.save({"state_dict": state}, directory / PUBLISHED_FILE)
    return str(directory)


def test_the_same_files_elsewhere_are_the_same_reward(
    described: dict[str, Any], spec: Spec, rewards_root: Path, tmp_path
):
    shutil.copytree(rewards_root / "hps", tmp_path / "copy")
    for checkpoint in (rewards_root / "hps", tmp_path / "copy"):
        one = spec("hps", name="mine", checkpoint=str(checkpoint), device="cuda", num_replicas=3, max_batch_images=7)
        assert differences(one, described) == []


def test_every_setting_that_moves_scores_makes_another_reward(described: dict[str, Any], spec: Spec):
    changes = {"model": "hps_v2", "preprocess": "smooth", "dtype": "bfloat16"}
    for field, value in changes.items():
        was = described["spec"][field]
        assert differences(spec("hps", **{field: value}), described) == [f"{field} is {was!r} there, {value!r} here"]


def test_other_weights_under_the_same_name_are_another_reward(
    described: dict[str, Any], spec: Spec, other_weights: str
):
    (found,) = differences(spec("hps", checkpoint=other_weights), described)
    assert found.startswith(f"checkpoint {other_weights!r} has other contents than the ")


def test_a_checkpoint_that_is_not_here_is_told_apart_by_its_score_alone(described: dict[str, Any], spec: Spec):
    (found,) = differences(spec("hps", checkpoint="no/such"), described)
    score = described["self_test_score"]
    assert found.startswith("checkpoint 'no/such' is not here, and ")
    assert found.endswith(f"if it is the one you mean, self_test_score={score:.6g}")
    assert differences(spec("hps", checkpoint="no/such", self_test_score=float(f"{score:.6g}")), described) == []
    (found,) = differences(spec("hps", checkpoint="no/such", self_test_score=score + 0.01), described)
    assert found.startswith("the test picture scores ")


def test_a_hub_id_is_what_it_is_called(described: dict[str, Any], spec: Spec):
    from_hub = described | {"identity": described["identity"] | {"checkpoint": "xswu/HPSv2"}}
    assert differences(spec("hps", checkpoint="xswu/HPSv2"), from_hub) == []
    assert differences(spec("hps", checkpoint="another/HPSv2"), from_hub) != []


def test_a_file_of_weights_is_another_with_another_tokenizer_beside_it(spec: Spec, other_weights: str):
    file = Path(other_weights) / PUBLISHED_FILE
    before = identity(spec("hps", checkpoint=str(file)))
    (file.parent / "tokenizer.json").write_text((file.parent / "tokenizer.json").read_text() + "\n")
    assert identity(spec("hps", checkpoint=str(file)))["checkpoint"] != before["checkpoint"]


def test_a_service_that_does_not_say_what_it_is_is_not_trusted(described: dict[str, Any], spec: Spec):
    silent = {name: value for name, value in described.items() if name != "identity"}
    assert differences(spec("hps"), silent)
