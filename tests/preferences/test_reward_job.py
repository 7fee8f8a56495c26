"""The job on a local cluster: what it leaves behind, that an interrupted one ends the same, and what it refuses."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from reward_services.models import load
from reward_services.spec import RewardSpec
from slingstone import cli
from slingstone.config import RewardFit, load_as
from slingstone.preferences import launch, preflight
from slingstone.preferences.parquet import write_parquet
from tests.preferences.test_fit import fitting, red_is_better
from tests.preferences.votes import votes

SHIPPED = Path(__file__).resolve().parents[2] / "configs" / "reward"


@pytest.fixture
def settings(rewards_root, tmp_path) -> RewardFit:
    write_parquet(tmp_path / "votes.parquet", red_is_better(120))
    found = fitting(rewards_root, storage=str(tmp_path), tracking={"system_metrics": False})
    training = found.training.model_copy(update={"num_votes": 192, "validate_every_votes": 48})
    given = {"votes": found.votes.model_copy(update={"train": str(tmp_path / "votes.parquet"), "held_out": 0.4})}
    return found.model_copy(update={"training": training, **given})


def longer(settings: RewardFit, name: str, num_votes: int) -> RewardFit:
    training = settings.training.model_copy(update={"num_votes": num_votes})
    runtime = settings.runtime.model_copy(update={"num_workers": 2})
    return settings.model_copy(update={"name": name, "training": training, "runtime": runtime})


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_the_job_leaves_a_served_reward_its_constants_and_its_numbers(settings, tmp_path) -> None:
    said: list[str] = []
    short = settings.training.model_copy(update={"num_votes": 48})
    summary = launch.fit(preflight.prepare(settings.model_copy(update={"training": short})), said.append)
    reward = tmp_path / "reward" / "test" / "reward"
    known = json.loads((reward / "reward.json").read_text())
    assert known["calibration"] == summary["calibration"]
    assert known["calibration"]["temperature"] > 0
    assert known["history"][0][0] == 0, "what it started from is scored, too, and kept if nothing is better"
    spec = RewardSpec(name="fitted", model="pickscore", checkpoint=str(reward))
    assert load(spec).score(torch.rand(1, 3, 40, 40), ["a"]).isfinite().all()
    assert any(f"checkpoint: {reward}" in line for line in said), "the user is told how to serve it"


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_a_fit_that_was_stopped_ends_with_the_same_weights_and_numbers_as_one_that_was_not(settings, tmp_path) -> None:
    said: list[str] = []
    whole = launch.fit(preflight.prepare(longer(settings, "whole", 192)), said.append)
    launch.fit(preflight.prepare(longer(settings, "parts", 96)), said.append)
    parts = launch.fit(preflight.prepare(longer(settings, "parts", 192)), said.append)
    assert parts["accuracy"] == whole["accuracy"]
    assert parts["calibration"] == whole["calibration"]
    assert "resumed at 96 votes" in said
    weights = [load_file(tmp_path / "reward" / name / "reward" / "model.safetensors") for name in ("whole", "parts")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    known = json.loads((tmp_path / "reward" / "whole" / "reward" / "reward.json").read_text())
    best = max(rate for _, rate in known["history"])
    assert whole["accuracy"]["rate"] == pytest.approx(best, abs=1e-5), "the best validation is what came out"
    assert whole["accuracy"]["rate"] > 0.7


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (lambda path: path.write_bytes(b""), "cannot be read as Parquet"),
        (lambda path: path.write_bytes(path.read_bytes()[:-400]), "cannot be read as Parquet"),
        (lambda path: write_parquet(path, []), "train side: holds no votes"),
        (lambda path: write_parquet(path, votes(40, choice="first")), "votes are 'first', so nothing can be learnt"),
    ],
)
def test_a_damaged_an_empty_and_a_one_sided_file_are_refused_before_anything_starts(settings, given, told) -> None:
    given(Path(settings.votes.train))
    with pytest.raises(ValueError, match=told) as refused:
        launch.fit(preflight.prepare(settings), print)
    assert "\n" not in str(refused.value)


def test_a_test_file_that_shares_prompts_is_refused(settings, tmp_path) -> None:
    test = settings.votes.model_copy(update={"test": settings.votes.train})
    with pytest.raises(
        ValueError, match=r"votes\.test = .*: 7 of its prompts are in votes\.train, too; split by prompt"
    ):
        launch.copy_votes(settings.model_copy(update={"votes": test}), tmp_path / "there", print)


@pytest.mark.parametrize("name", sorted(path.name for path in SHIPPED.glob("*.yaml")))
def test_every_shipped_recipe_is_valid(name: str) -> None:
    assert load_as(RewardFit, SHIPPED / name).name == Path(name).stem


def test_mistakes_of_a_recipe_are_named_with_their_remedy(settings, tmp_path, capsys) -> None:
    path = tmp_path / "reward.yaml"
    path.write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    wrong = ["training.accumulate=5", "ensemble={heads: 3}", "learns.kind=last_blocks", "runtime.num_workers=2"]
    assert cli.main(["reward", str(path), *wrong]) == 1
    told = capsys.readouterr().err
    for part in ("runtime.num_workers * training.accumulate = 10", "set learns: {kind: head}", "vision_blocks"):
        assert part in told
    assert cli.main(["reward", str(path), "votes.train=nowhere.parquet"]) == 1
    assert "votes.train = 'nowhere.parquet': does not exist" in capsys.readouterr().err
