"""A whole run on a local cluster: what it leaves behind, and that an interrupted one ends the same."""

import json
from pathlib import Path

import mlflow
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from slingstone.config import flatten
from slingstone.driver import launch
from tests.driver.test_shipped import check_shipped

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]
ALONE = ("runtime.num_workers=1", "rewards.backend=in_process", "evaluation.reference=null", "evaluation.num_prompts=2")


def history(run_id: str, uri: str, metric: str) -> list[tuple[int, float]]:
    client = mlflow.MlflowClient(uri)
    return [(point.step, point.value) for point in client.get_metric_history(run_id, metric)]


def runs(storage: Path) -> list:
    client = mlflow.MlflowClient(f"sqlite:///{storage / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("slingstone")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


def exported(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")


def test_two_workers_with_served_rewards_leave_everything_a_user_was_promised(micro, tmp_path):
    combined = ("rewards.on_failure=drop", "rewards.services.pickscore.preprocess_at=client")
    run = micro("runtime.num_workers=2", "runtime.zero_stage=2", *combined)
    said: list[str] = []
    summary = launch.align(run, said.append)
    directory = tmp_path / "align" / "micro"
    assert json.loads((directory / "summary.json").read_text()) == summary

    for label, evaluations in (("init", 1), ("aligned", 1), ("reference_2_steps", 4)):
        found = summary[label]
        assert set(found["rewards"]) == {"pickscore", "hps"}, "held-out rewards are evaluated too"
        assert found["network_evaluations"] == evaluations
        assert found["seconds_per_image"] > 0
        assert found["diversity"] > 0
    assert summary["init"]["rewards"] != summary["aligned"]["rewards"]

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    (found,) = runs(tmp_path)
    assert (found.info.run_id, found.info.status, found.info.run_name) == (
        summary["mlflow_run_id"],
        "FINISHED",
        "micro",
    )
    assert found.data.params == flatten(run)
    assert {"git_commit", "lock_sha256"} <= set(found.data.tags)
    for label in ("init", "aligned", "reference_2_steps"):
        assert found.data.metrics[f"{label}/rewards/pickscore"] == summary[label]["rewards"]["pickscore"]
        assert found.data.metrics[f"{label}/diversity"] == summary[label]["diversity"]
    assert [step for step, _ in history(found.info.run_id, uri, "loss/assistant")] == [8, 16, 24, 32]
    assert [step for step, _ in history(found.info.run_id, uri, "reward/pickscore")] == [16, 24, 32], (
        "not in the warm-up"
    )
    assert history(found.info.run_id, uri, "dropped/pickscore")[-1] == (32, 0.0)
    assert "reward/hps" not in found.data.metrics, "a held-out reward is not asked for in training"

    assert {f"seconds/{stage}" for stage in ("text", "divergence", "reward_wait", "step")} <= found.data.metrics.keys()
    assert {"images_per_second", "mfu", "memory/peak_gib"} <= found.data.metrics.keys()

    artifacts = Path(found.info.artifact_uri.removeprefix("file://"))
    assert tmp_path in artifacts.parents, "artifacts lie under storage, not in some working directory"
    for name in ("summary.json", "config.yaml", "pipeline/model_index.json", "pictures/grid_000000016.png"):
        assert (artifacts / name).is_file(), name
    card = (directory / "pipeline" / "README.md").read_text()
    assert f"{summary['aligned']['rewards']['pickscore']:.4f}" in card, "the model card tells what was measured"
    assert f"`{found.data.tags['git_commit']}`" in card
    grid = Image.open(artifacts / "pictures" / "grid.png")
    assert grid.size > (3 * 48, 2 * 48)

    check_shipped(run, summary, tmp_path / "again")

    text = "\n".join(said)
    assert "] 32/32  " in text
    assert "reward pickscore" in text
    assert len(summary["largest_stages"]) == 2
    assert f"most of a training step's time: {next(iter(summary['largest_stages']))} " in text
    assert said.count("no prompt is cut") == 2, "at the start and below the table"
    assert summary["cut_prompts"]["evaluation"]["reward hps"]["cut"] == 0
    assert "mlflow ui --backend-store-uri" in text


def test_an_interrupted_run_ends_bit_by_bit_like_one_that_was_not(micro, tmp_path):
    # with a reward whose scale depends on all that came before
    alone = (*ALONE, "rewards.services.pickscore.normalisation={kind: running, half_life_images: 16}")
    whole = launch.align(micro(*alone, "name=whole"), print)
    half = launch.align(micro(*alone, "name=parts", "training.num_images=16"), print)
    parts = launch.align(micro(*alone, "name=parts"), print)

    assert half["mlflow_run_id"] == parts["mlflow_run_id"], "one run in MLflow, too"
    for metric in ("loss/assistant", "loss/divergence", "reward/pickscore", "grad_norm/generator"):
        expected = history(whole["mlflow_run_id"], whole["mlflow_uri"], metric)
        assert history(parts["mlflow_run_id"], parts["mlflow_uri"], metric) == expected
        assert expected
    first, second = exported(tmp_path / "align" / "whole"), exported(tmp_path / "align" / "parts")
    assert all(torch.equal(first[name], second[name]) for name in first)
    for label in ("init", "aligned"):
        assert whole[label]["rewards"] == parts[label]["rewards"]

    said: list[str] = []
    assert launch.align(micro(*alone, "name=parts"), said.append) == parts
    assert "is complete" in said[0]
    with pytest.raises(ValueError, match=r"differs in objective.reward_weight \(10.0 -> 3.0\)"):
        launch.align(micro(*alone, "name=parts", "objective.reward_weight=3"), print)


@pytest.mark.slow
def test_a_run_that_fails_says_why_in_a_line_and_keeps_the_traceback(micro, micro_checkpoints, tmp_path):
    broken = tmp_path / "broken"
    for path in (micro_checkpoints / "generator").rglob("*"):
        if path.is_file():
            target = broken / path.relative_to(micro_checkpoints / "generator")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    weights = broken / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(launch.RunFailed, match=r"generator .*broken") as caught:
        launch.align(micro(*ALONE, f"models.generator={broken}"), print)
    assert len(str(caught.value).splitlines()) == 2
    assert "Traceback" in (tmp_path / "align" / "micro" / "error.txt").read_text()
    (found,) = runs(tmp_path)
    assert found.info.status == "FAILED"
