"""What lies beyond the tokens that a text encoder or a reward takes is counted where a user looks."""

import re
from pathlib import Path

import pytest
import torch

from reward_services import models
from reward_services.spec import RewardSpec
from slingstone.cli import main
from slingstone.networks import latent_diffusion
from slingstone.plan import cut_prompts as cut_prompts_module
from slingstone.plan.cut_prompts import counted, cut_prompts, told
from tests import tiny_pixart, tiny_sd3, tiny_sdxl

SHORT = "a red disc"
LONG = " ".join(["a very long prompt of a disc"] * 60)


@pytest.fixture
def long_run(micro, tmp_path):
    """Return a run two of whose three prompts are cut by everything that reads prompts."""
    prompts = tmp_path / "long.txt"
    prompts.write_text(f"{LONG} one\n{SHORT}\n{LONG} two\n")
    return micro(f"data.prompts={prompts}", f"evaluation.prompts={prompts}", "evaluation.num_prompts=1")


def test_cut_prompts_of_a_run_are_counted_for_each_encoder_and_reward(long_run, micro):
    counts = cut_prompts(long_run)
    readers = {"text_encoder", "reward pickscore", "reward hps"}
    assert counts.keys() == {"data", "evaluation"}
    assert counts["data"].keys() == readers
    assert {(found["cut"], found["prompts"]) for found in counts["data"].values()} == {(2, 3)}
    assert {(found["cut"], found["prompts"]) for found in counts["evaluation"].values()} == {(1, 1)}
    assert len(told(counts)) == 1 + 6
    assert told(cut_prompts(micro())) == ["no prompt is cut"]


@pytest.mark.parametrize("write", [tiny_sdxl.write_pipeline, tiny_pixart.write_pipeline, tiny_sd3.write_pipeline])
def test_a_condition_does_not_see_the_end_of_what_counts_as_cut(tmp_path: Path, write) -> None:
    directory = str(write(tmp_path / "pipeline"))
    encoder = latent_diffusion.load(directory, directory, generator_timestep=399).text_encoder
    prompts = {str(count): ["disc " * count] for count in range(1, 300)}
    counts = counted(prompts, {"": directory}, ())
    cut = {int(name): [found["cut"] for found in readers.values()] for name, readers in counts.items()}
    whole = min(count for count, of_readers in cut.items() if all(of_readers))
    none = min(count for count, of_readers in cut.items() if any(of_readers)) - 2
    for count, same in ((whole, True), (none, False)):
        first, second = (encoder.encode(["disc " * count + end])["text"] for end in ("", "red"))
        assert torch.equal(first, second) == same


@pytest.mark.parametrize("kind", ["pickscore", "hps", "imagereward"])
def test_a_rewards_score_does_not_see_what_counts_as_cut(rewards_root: Path, kind: str) -> None:
    spec = (
        RewardSpec(
            name=kind, model=kind, checkpoint=str(rewards_root / kind), tokenizer=str(rewards_root / "tokenizer")
        )
        if kind != "imagereward"
        else RewardSpec(name=kind, model=kind, checkpoint=str(rewards_root / kind))
    )
    (found,) = counted({"x": [LONG, SHORT]}, {}, [spec])["x"].values()
    assert (found["cut"], found["prompts"]) == (1, 2)
    reward, picture = models.load(spec), torch.rand(1, 3, 48, 48)
    assert torch.equal(reward.score(picture, [LONG]), reward.score(picture, [f"{LONG} and a cat"]))


@pytest.mark.parametrize("write", [tiny_sdxl.write_pipeline, tiny_pixart.write_pipeline, tiny_sd3.write_pipeline])
def test_the_quick_look_at_letters_misses_no_prompt(tmp_path: Path, write, monkeypatch) -> None:
    directory = str(write(tmp_path / "pipeline"))
    prompts = [letter * count for letter in ("x", "#", "q ", "é", "猫") for count in range(1, 130)]
    quick = counted({"x": prompts}, {"": directory}, ())
    monkeypatch.setattr(cut_prompts_module, "SPECIAL", 10**6)
    assert counted({"x": prompts}, {"": directory}, ()) == quick


def test_what_cannot_be_counted_is_told_and_downloads_nothing(long_run):
    spec = long_run.rewards.services[0].spec.model_copy(update={"tokenizer": "nobody/absent"})
    own = RewardSpec(name="mine", model="my.package:Mine", checkpoint="x")
    counts = counted({"x": [SHORT]}, {"sdxl": "nobody/absent"}, [spec, own])
    lines = "\n".join(told(counts))
    assert "x: not known of sdxl text encoders, nobody/absent is not here" in lines
    assert re.search("x: not known of reward pickscore, tokenizer .nobody/absent. has no vocabulary", lines)
    assert "mine" not in lines, "what reads no prompt, or is a user's own, is left out"


def test_a_dry_run_tells_how_many_prompts_are_cut(write_run, tmp_path, capsys):
    prompts = tmp_path / "long.txt"
    prompts.write_text(f"{LONG}\n{SHORT}\n")
    asked = [f"data.prompts={prompts}", "rewards.services=[]", "objective.reward_weight=0"]
    assert main(["align", str(write_run()), "--dry-run", *asked]) == 0
    assert re.search(r"#   data: 1 of 2 beyond the \d+ tokens of text_encoder\n", capsys.readouterr().out)
