"""The guard in a whole run on a local cluster."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from slingstone.checkpoints.state import Facts
from slingstone.config import ConfigError, Guard, load
from slingstone.driver import launch
from slingstone.worker.guard import HackingGuard

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


@dataclass
class FakeKept:
    """Keeps the images that a state stands for, a file a rank, as real checkpoints keep its shards."""

    file: Path
    restored: list[str] = field(default_factory=list)

    def save(self, facts: Facts) -> None:
        self.file.write_text(facts.name)

    def finish(self) -> None:
        dist.barrier()

    def newest(self) -> str | None:
        return self.file.read_text() if self.file.is_file() else None

    def restore_from(self, name: str) -> Facts:
        self.restored.append(name)
        return Facts(int(name), 2, "", {})


class FakeMeasure:
    """Knows the initial generator's numbers."""

    def initial_short(self, generator: object) -> dict:
        return {"rewards": {"held": 0.5}, "diversity": 0.2}


def watched(rank: int, store: str, directory: Path, result: Path) -> None:
    """Guard a run on one of two ranks, interrupted after its third evaluation; rank 1 sees numbers of its own."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    rule = {"metric": "diversity", "below": 0.5, "patience": 2, "action": "roll_back"}
    guard = Guard.model_validate({"rules": [rule], "best": {"metric": "rewards/held"}})

    def facts(images: int) -> Facts:
        return Facts(images, 2, "", {})

    def see(guard: HackingGuard, images: int, held: float, diversity: float) -> str:
        seen = diversity if rank == 0 else 0.2
        return guard.judge({"rewards": {"held": held}, "diversity": seen}, facts(images)).action

    kept = FakeKept(result / f"kept_{rank}")
    first = HackingGuard(guard, directory, kept, rank)
    first.begin(FakeMeasure(), None, facts(0))
    actions = [see(first, 10, 0.6, 0.2), see(first, 20, 0.7, 0.2), see(first, 30, 0.9, 0.05)]
    again = HackingGuard(guard, directory, kept, rank)  # from a checkpoint at 20 images
    again.begin(FakeMeasure(), None, facts(20))
    actions += [see(again, 30, 0.9, 0.05), see(again, 40, 0.95, 0.05)]
    again.finish()
    found = {"actions": actions, "restored": kept.restored, "guard": again.outcome["guard"]["best_images"]}
    (result / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def test_two_ranks_obey_the_same_decision_and_restore_the_best_state_also_after_a_restart(tmp_path):
    run, result = tmp_path / "run", tmp_path / "result"
    result.mkdir()
    arguments = (str(tmp_path / "store"), run, result)
    torch.multiprocessing.spawn(watched, arguments, nprocs=2)
    for rank in (0, 1):
        found = json.loads((result / f"{rank}.json").read_text())
        assert found["actions"] == ["go_on", "go_on", "go_on", "go_on", "roll_back"], "patience counts from before"
        assert found["restored"] == ["000000000020"], "the best that broke no rule, though 40 images scored higher"
        assert found["guard"] == 20


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
    assert [path.name for path in (directory / "guard" / "best").iterdir()] == ["000000000000"]

    assert launch.align(run, said.append) == summary
    assert "micro is complete: delete" in "\n".join(said)
