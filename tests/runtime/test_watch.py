"""The guard in a whole run on a local cluster."""

import json

import pytest
import torch
from safetensors.torch import load_file

from slingstone.config import ConfigError, load
from slingstone.runtime import launch

# Broken by any change of the score, in either direction; the initial generator alone is sound.
UNCHANGED = "{metric: rewards/pickscore, below: 0, above: 0, relative: difference, patience: 2, action: roll_back}"
WATCHED = (f"guard.rules=[{UNCHANGED}]", "guard.best={metric: rewards/hps}")


@pytest.mark.parametrize(
    ("guard", "said"),
    [
        ("{rules: [{metric: diversity}]}", "has no bound"),
        ("{rules: [{metric: utility, below: 1}]}", r"guard.rules.0.metric = 'utility': is in no evaluation"),
        ("{rules: [{metric: rewards/clip, below: 1}]}", r"it has rewards/pickscore, rewards/hps, diversity"),
        ("{rules: [{metric: diversity, below: 1, action: roll_back}]}", r"guard.best = None: is needed by"),
        ("{best: {metric: rewards/pickscore}}", r"guard.best.metric = 'rewards/pickscore': is trained on"),
    ],
)
def test_a_guard_that_could_not_work_is_refused(write_run, guard, said):
    with pytest.raises(ConfigError, match=said):
        load(write_run(), [f"guard={guard}"])


@pytest.mark.ray
def test_a_run_that_breaks_its_rules_ends_everywhere_at_once_with_the_weights_of_the_best_evaluation(
    cluster, micro, micro_checkpoints, tmp_path
):
    said: list[str] = []
    run = micro(
        *WATCHED,
        "runtime.num_workers=2",
        "rewards.backend=in_process",
        "evaluation.reference=null",
        "training.num_images=64",
    )
    summary = launch.align(run, said.append)
    assert summary["images"] == 32, "the second evaluation in a row, of four"
    assert (summary["guard"]["action"], summary["guard"]["best_images"]) == ("roll_back", 0)
    assert any(line.startswith("guard at 32 images, back to 0 images: rewards/pickscore") for line in said)

    directory = tmp_path / "align" / "micro"
    file = "unet/diffusion_pytorch_model.safetensors"
    before, after = load_file(micro_checkpoints / "generator" / file), load_file(directory / "pipeline" / file)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert summary["aligned"]["rewards"] == summary["init"]["rewards"]
    seen = json.loads((directory / "guard" / "history.json").read_text())
    assert [entry["images"] for entry in seen] == [0, 16, 32]
    assert [path.name for path in (directory / "guard").glob("best_*")] == ["best_000000000"]

    assert launch.align(run, said.append) == summary
    assert "micro is complete: delete" in "\n".join(said)
