"""The loop of one worker in this process, without a cluster: what a failure costs, and what is kept."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from reward_services.protocol import RewardFailedError
from slingstone.checkpoints.run_directory import RunDirectory, checkpoints, newest
from slingstone.checkpoints.store import open_store, read_manifest
from slingstone.config import Experiment
from slingstone.export.request import Request, export
from slingstone.step.trainer import Trainer
from slingstone.worker import loop
from slingstone.worker.assignment import Assignment
from slingstone.worker.measure import Measure

ALONE = (
    *("runtime.engine=torch", "rewards.backend=in_process", "rewards.services=[]", "objective.reward_weight=0"),
    *("evaluation.reference=null", "evaluation.num_prompts=2", "evaluation.images_per_prompt=2"),
)


@dataclass
class Listener:
    """Hears what rank 0 tells, in the place of the terminal and of MLflow."""

    said: list[str] = field(default_factory=list)
    found_at: list[tuple[str, int]] = field(default_factory=list)
    steps: int = 0

    def say(self, line: str) -> None:
        self.said.append(line)

    def found(self, label: str, summary: dict[str, Any], images: int) -> None:
        self.found_at.append((label, images))

    def step(self, metrics: dict[str, float], images: int, num_images: int) -> None:
        self.steps += 1

    def stopping(self) -> bool:
        return False

    def guarded(self, decision: Any) -> Any:
        return decision

    def largest_stages(self) -> dict[str, Any]:
        return {}

    def quiet(self, *_: Any) -> None:
        """Take note of nothing."""

    saved = went_back = started = grid = finish = quiet


@pytest.fixture
def run(micro, tmp_path, monkeypatch) -> Callable[..., tuple[dict[str, Any], Listener]]:
    """Return a function that runs the loop on overrides; returns the results and what was told."""
    context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
    monkeypatch.setattr(loop.ray.train, "get_context", lambda: context)
    monkeypatch.setattr(loop.ray.train, "report", lambda metrics: None)
    monkeypatch.setattr(loop.ray.train.torch, "get_device", lambda: torch.device("cpu"))

    def align(experiment: Experiment, heard: Listener | None = None) -> tuple[dict[str, Any], Listener]:
        heard = heard or Listener()
        monkeypatch.setattr(loop, "Reporter", lambda *_: heard)
        assignment = Assignment(experiment, str(tmp_path / "align" / experiment.name), "", "mlflow", None)
        return loop.align({"assignment": assignment}), heard

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield align
    dist.destroy_process_group()


def failing_once(monkeypatch, method: str) -> None:
    """Have a method of the evaluations lose its reward the first time."""
    whole, calls = getattr(Measure, method), []

    def first_fails(self: Measure, *given: Any) -> Any:
        calls.append(given)
        if len(calls) == 1:
            raise RewardFailedError("hps", "out of memory")
        return whole(self, *given)

    monkeypatch.setattr(Measure, method, first_fails)


def without_times(summary: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in summary.items() if name not in ("seconds_per_image", "standard_errors")}


def test_a_reward_that_fails_in_the_last_evaluation_costs_no_step(micro, run, monkeypatch, tmp_path):
    whole, _ = run(micro(*ALONE, "name=whole"))
    experiment = micro(*ALONE, "name=failed", "training.checkpoint_every_images=1000")
    failing_once(monkeypatch, "aligned")
    with pytest.raises(RewardFailedError):
        run(experiment)
    assert newest(experiment) == "000000000032"
    (tmp_path / "align" / "failed" / "evaluation" / "init.json").write_text('{"rewards": {')  # as a full disk leaves it
    again, heard = run(experiment)
    assert without_times(again["init"]) == without_times(whole["init"]), "measured again"
    assert heard.steps == 0, "the evaluation alone is repeated"
    assert without_times(again["aligned"]) == without_times(whole["aligned"])


def test_an_evaluation_on_the_way_that_failed_is_made_after_the_restart_from_its_own_position(micro, run, monkeypatch):
    experiment = micro(*ALONE)
    failing_once(monkeypatch, "short")
    with pytest.raises(RewardFailedError):
        run(experiment)
    assert newest(experiment) == "000000000016", "published before the evaluation"
    _, heard = run(experiment)
    assert heard.steps == 2
    assert heard.found_at == [("init", 0), ("training", 16), ("training", 32), ("aligned", 32)]


def test_each_evaluation_has_a_checkpoint_with_its_score_where_the_best_is_to_be_kept(micro, run, monkeypatch):
    found: list[float] = []
    short = Measure.short

    def noted(self: Measure, generator: Any) -> dict[str, Any]:
        summary = short(self, generator)
        found.append(summary["diversity"])
        return summary

    monkeypatch.setattr(Measure, "short", noted)
    experiment = micro(*ALONE, "training.checkpoint_every_images=1000", "training.keep_best=diversity")
    run(experiment)
    store = open_store(checkpoints(experiment))
    assert [read_manifest(store, name).facts.score for name in store.names()] == found
    assert len(found) == 2


def test_a_guard_that_ended_a_run_ends_it_again_when_the_last_evaluation_is_repeated(micro, run, monkeypatch, tmp_path):
    rule = "{metric: diversity, below: 0, above: 0, relative: difference, action: roll_back}"
    experiment = micro(*ALONE, f"guard.rules=[{rule}]", "guard.best={metric: appearance/contrast}")
    failing_once(monkeypatch, "aligned")
    with pytest.raises(RewardFailedError):
        run(experiment)
    results, heard = run(experiment)
    assert heard.steps == 0
    assert (results["guard"]["images"], results["guard"]["best_images"]) == (16, 0)
    assert without_times(results["aligned"]) == without_times(results["init"])

    history = RunDirectory(tmp_path / "align" / experiment.name)
    history.begin(experiment, "nowhere", "0")
    history.end(results | {"images": 16})
    export(Request(history.directory, tmp_path / "exported"), heard.say)
    initial, exported = (
        load_file(Path(pipeline) / "unet" / "diffusion_pytorch_model.safetensors")
        for pipeline in (experiment.models.generator, tmp_path / "exported")
    )
    assert all(torch.equal(exported[name], weight) for name, weight in initial.items()), (
        "what is exported is what the guard returned to and the table tells, not the newest checkpoint"
    )
    card = (tmp_path / "exported" / "README.md").read_text()
    assert "| images | 0 |" in card
    assert "not evaluated" not in card


def test_a_generator_that_draws_no_numbers_is_named_in_a_sentence_and_no_reward_is(micro, run, monkeypatch):
    update = Trainer._update_generator

    def lost(self: Trainer) -> Any:
        found = update(self)
        for fragment in self.ema.fragments.values():
            fragment.values.fill_(float("nan"))
        return found

    monkeypatch.setattr(Trainer, "_update_generator", lost)
    with pytest.raises(
        FloatingPointError, match=r"the averaged generator at 16 images drew 2 of 2 pictures that are not"
    ):
        run(micro(*ALONE))
