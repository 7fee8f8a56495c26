"""Kills, signals and explosions in a whole run on a real cluster: it ends as if nothing had happened."""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from safetensors.torch import load_file

from slingstone.driver import launch
from tests.faults import ranks

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]
ALONE = (
    "runtime.num_workers=1",
    "rewards.backend=in_process",
    "rewards.services.pickscore.normalisation={kind: running, half_life_images: 16}",
    "evaluation.reference=null",
    "evaluation.num_prompts=2",
    "training.checkpoint_every_images=8",
)
METRICS = ("loss/assistant", "loss/divergence", "reward/pickscore", "grad_norm/generator", "training/diversity")


@pytest.fixture
def undisturbed(micro, tmp_path) -> Callable[..., dict[str, Any]]:
    return lambda *overrides: launch.align(micro(*ALONE, *overrides, "name=undisturbed"), print)


def points(summary: dict[str, Any], metric: str) -> list[tuple[int, float]]:
    client = mlflow.MlflowClient(summary["mlflow_uri"])
    return [(point.step, point.value) for point in client.get_metric_history(summary["mlflow_run_id"], metric)]


def assert_same_end(storage: Path, first: dict[str, Any], second: dict[str, Any]) -> None:
    weights = [
        load_file(storage / "align" / summary["name"] / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")
        for summary in (first, second)
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert first["aligned"]["rewards"] == second["aligned"]["rewards"]
    for metric in METRICS:
        found = points(second, metric)
        assert found == points(first, metric)
        assert found
        assert max(Counter(step for step, _ in found).values()) == 1, "nothing is counted twice"


def runs(summary: dict[str, Any]) -> list[Any]:
    client = mlflow.MlflowClient(summary["mlflow_uri"])
    experiment = client.get_experiment_by_name("slingstone")
    assert experiment is not None
    return [run for run in client.search_runs([experiment.experiment_id]) if run.info.run_name == summary["name"]]


@pytest.mark.slow
def test_a_worker_killed_in_a_step_and_again_while_saving_ends_bit_by_bit_as_undisturbed(micro, undisturbed, tmp_path):
    expected = undisturbed()
    said: list[str] = []
    found = launch.align(micro(*ALONE, "name=killed"), said.append, rank=ranks.killed_twice)
    assert_same_end(tmp_path, expected, found)
    again = [line for line in said if "starting again" in line]
    assert len(again) == 2, said
    # That of 16 images is written beside the step in which the worker dies: it is whole, or it is not there.
    assert any(f"from checkpoint {images:012}" in again[0] for images in (8, 16)), again
    assert "from checkpoint 000000000016" in again[1], "what was being written is not a checkpoint"
    (run,) = runs(found)
    assert run.info.status == "FINISHED"


@pytest.mark.slow
def test_a_run_that_is_told_to_stop_saves_and_the_same_command_continues_its_mlflow_run(micro, undisturbed, tmp_path):
    longer = ("training.num_images=96", "training.grid_every_images=48", "training.checkpoint_every_images=1000")
    expected = undisturbed(*longer)
    run, said = micro(*ALONE, *longer, "name=stopped"), []
    directory = tmp_path / "align" / "stopped"

    def terminate() -> None:
        while not list(directory.glob("metrics-*.jsonl")):
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=terminate, daemon=True).start()
    with pytest.raises(SystemExit) as stopped:
        launch.align(run, said.append, rank=ranks.slow_steps)
    assert stopped.value.code == 143
    assert any("saved; the same command continues" in line for line in said)
    assert len(list((tmp_path / "align" / "stopped" / "checkpoints").iterdir())) == 1
    found = launch.align(run, print)
    assert_same_end(tmp_path, expected, found)
    (tracked,) = runs(found)
    assert tracked.info.status == "FINISHED"


@pytest.mark.slow
def test_an_explosion_goes_back_to_the_last_checkpoint_and_on_with_other_noise(micro, tmp_path):
    said: list[str] = []
    run = micro(*ALONE, "name=exploded", "recovery.exploding={rollbacks: 2}")
    found = launch.align(run, said.append, rank=ranks.exploding)
    assert any("back to 16 images, on with other noise" in line for line in said)
    weights = load_file(tmp_path / "align" / "exploded" / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())
    assert [step for step, _ in points(found, "loss/assistant")] == [8, 16, 24, 32]


@pytest.mark.slow
def test_an_explosion_stops_a_run_that_was_not_told_to_survive_it(micro):
    with pytest.raises(launch.RunFailed, match="gradient norm of the generator is inf"):
        launch.align(micro(*ALONE, "name=ruined"), print, rank=ranks.exploding)


@pytest.mark.slow
def test_too_many_deaths_without_a_new_checkpoint_end_the_run(micro):
    said: list[str] = []
    with pytest.raises(launch.RunFailed):
        launch.align(micro(*ALONE, "name=doomed", "recovery.max_failures=1"), said.append, rank=dies_at_once)
    assert sum("starting again from the beginning" in line for line in said) == 1


def dies_at_once(config: dict[str, Any]) -> dict[str, Any]:
    ranks.die()
    return {}
