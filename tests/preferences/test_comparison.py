"""Rewards side by side on votes: the numbers, the table, the pictures, and what is refused."""

import json

import mlflow
import pytest
import yaml
from PIL import Image

from slingstone import cli
from slingstone.preferences.comparison import judged_by
from slingstone.preferences.parquet import write_parquet
from slingstone.preferences.store import VoteStore
from tests.preferences.test_fit import fitting, red_is_better, served


@pytest.fixture
def config(rewards_root, tmp_path):
    write_parquet(tmp_path / "votes.parquet", red_is_better(60))
    services = [
        {
            "name": name,
            "model": name,
            "checkpoint": str(rewards_root / name),
            "tokenizer": str(rewards_root / "tokenizer"),
        }
        for name in ("pickscore", "hps")
    ]
    tree = {
        "kind": "rewards",
        "name": "two",
        "storage": str(tmp_path),
        "votes": [{"name": "red", "path": str(tmp_path / "votes.parquet")}],
        "rewards": {"backend": "in_process", "services": services},
        "sheet_pairs": 2,
    }
    path = tmp_path / "rewards.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def test_rewards_are_compared_on_votes_with_table_pictures_and_a_run(config, rewards_root, tmp_path, capsys) -> None:
    assert cli.main(["evaluate", str(config)]) == 0
    told = capsys.readouterr().out
    directory = tmp_path / "evaluate" / "two"
    found = json.loads((directory / "results.json").read_text())["red"]
    store = VoteStore.write(tmp_path / "again.arrow", red_is_better(60))
    judged = judged_by(served(rewards_root / "pickscore", fitting(rewards_root)), store)
    rate = sum((gap > 0) == bool(first) for gap, first in zip(judged.gap, judged.labels[0], strict=True)) / 60
    assert found["pickscore"]["all"][0] == pytest.approx(rate)
    assert f"{rate:.3f}" in told
    assert "Voters agree with each other: unknown" in told
    assert sum(votes for *_, votes in found["hps"]["reliability"]) == 60
    assert Image.open(directory / "red-hps-wrong.png").width > 3 * 192
    assert Image.open(directory / "red-reliability.png").width > 300
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("slingstone")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.metrics["red/pickscore/accuracy"] == pytest.approx(rate)


def test_a_comparison_that_cannot_be_is_refused(config, capsys) -> None:
    assert cli.main(["evaluate", str(config), "rewards.backend=serve"]) == 1
    assert "rewards.backend = 'serve': votes are judged in this process" in capsys.readouterr().err
    assert cli.main(["evaluate", str(config), "votes.red.path=nowhere"]) == 1
    assert "red = 'nowhere': does not exist" in capsys.readouterr().err
