"""The guard: its decisions, from numbers to action; what carries them out on every rank; a whole run on a cluster."""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from slingstone import atomic
from slingstone.checkpoints.manifest import Facts
from slingstone.config import ConfigError, Evaluation, Guard, flatten, load
from slingstone.driver import launch
from slingstone.worker.guard import Finding, HackingGuard, decide
from slingstone.worker.measure import Measure
from tests.small_run import small

INIT = Finding(0, {"held": -1.0, "diversity": 0.2, "utility": 0.5})


def guard(*rules: dict, **changes) -> Guard:
    return Guard.model_validate({"rules": rules, **changes})


def seen(images: int, **values: float) -> Finding:
    return Finding(images, {**INIT.values, **values})


def test_bounds_are_multiples_of_init_differences_from_it_or_values():
    rules = guard(
        {"metric": "diversity", "below": 0.5, "above": 2},
        {"metric": "held", "below": -0.5, "relative": "difference"},
        {"metric": "utility", "below": 0.4, "relative": "absolute"},
    )
    for values, broken in (
        ({"diversity": 0.11, "held": -1.4, "utility": 0.41}, []),
        ({"diversity": 0.09}, ["diversity"]),
        ({"diversity": 0.41}, ["diversity"]),
        ({"held": -1.6, "utility": 0.39}, ["held", "utility"]),
    ):
        decision = decide(rules, [INIT, seen(10, **values)])
        assert [breach.rule.metric for breach in decision.breaches] == broken
        assert decision.action == ("warn" if broken else "go_on")


def test_a_rule_acts_only_when_broken_as_often_in_a_row_as_its_patience():
    patient = guard({"metric": "diversity", "below": 0.5, "patience": 2, "action": "stop"})
    low, fine = {"diversity": 0.05}, {"diversity": 0.2}
    history = [INIT, seen(10, **low), seen(20, **fine), seen(30, **low)]
    assert not decide(patient, history[:2]).ends
    assert not decide(patient, history).ends, "not in a row"
    decision = decide(patient, [*history, seen(40, **low)])
    assert decision.action == "stop"
    assert "diversity 0.05 is below 0.1 (init 0.2) for 2 evaluations" in str(decision)


def test_the_gravest_action_of_all_broken_rules_is_taken():
    rules = guard(
        {"metric": "diversity", "below": 0.5, "action": "stop"},
        {"metric": "utility", "below": 0.5, "action": "warn"},
    )
    assert decide(rules, [INIT, seen(10, utility=0.1)]).action == "warn"
    assert decide(rules, [INIT, seen(10, utility=0.1, diversity=0.01)]).action == "stop"


@pytest.mark.parametrize(("mode", "best"), [("max", 20), ("min", 0)])
def test_roll_back_returns_to_the_best_evaluation_that_broke_no_rule(mode, best):
    rules = guard(
        {"metric": "diversity", "below": 0.5, "action": "roll_back"}, best={"metric": "utility", "mode": mode}
    )
    history, kept = [], None
    for found in (INIT, seen(10, utility=0.55), seen(20, utility=0.6), seen(30, utility=0.9, diversity=0.01)):
        history.append(found)
        decision = decide(rules, history, kept)
        kept = found if decision.keep else kept
    assert decision.action == "roll_back"
    assert (decision.best, kept.images) == (best, best)


def test_without_a_sound_evaluation_to_return_to_training_stops():
    rules = guard(
        {"metric": "utility", "below": 0.9, "relative": "absolute", "action": "roll_back"},
        best={"metric": "diversity"},
    )
    assert decide(rules, [INIT, seen(10)]).action == "stop"


def test_nothing_is_kept_unless_a_rule_may_return_to_it():
    rules = guard({"metric": "diversity", "below": 0.5, "action": "stop"}, best={"metric": "utility"})
    assert not decide(rules, [INIT, seen(10, utility=0.9)]).keep


def test_a_number_that_no_picture_has_breaks_no_rule():
    rules = guard({"metric": "accuracy/relation", "below": 0.5, "action": "stop"})
    assert decide(rules, [INIT, seen(10)]).action == "go_on"


# Broken by any change of the score, in either direction; the initial generator alone is sound.
UNCHANGED = "{metric: rewards/pickscore, below: 0, above: 0, relative: difference, patience: 2, action: roll_back}"
GUARDED = (f"guard.rules=[{UNCHANGED}]", "guard.best={metric: rewards/hps}")


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
class FakeCheckpoints:
    """Hold the facts of one state, a file a rank, as real checkpoints hold its shards."""

    file: Path
    restored: list[str] = field(default_factory=list)

    def save(self, facts: Facts) -> None:
        self.file.write_text(json.dumps(asdict(facts)))
        dist.barrier()

    def best(self) -> Facts | None:
        return Facts(**json.loads(self.file.read_text())) if self.file.is_file() else None

    def restore_from(self, name: str) -> Facts:
        self.restored.append(name)
        return Facts(int(name), 2, "", {})


class FakeMeasure(Measure):
    """Knows the initial generator's numbers."""

    def __init__(self) -> None:
        pass

    def initial_short(self, generator: object) -> dict:
        return {"rewards": {"held": 0.5}, "diversity": 0.2}


BY_HELD = {"guard.best.metric": "rewards/held", "guard.best.mode": "max"}


def guarded(rank: int, store: str, directory: Path, result: Path) -> None:
    """Guard a run on one of two ranks, interrupted after its third evaluation.

    Rank 1 sees numbers of its own, and of the run's directory a listing so old that nothing is in it.
    """
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    rule = {"metric": "diversity", "below": 0.5, "patience": 2, "action": "roll_back"}
    guard = Guard.model_validate({"rules": [rule], "best": {"metric": "rewards/held"}})

    def facts(images: int) -> Facts:
        return Facts(images, 2, "", BY_HELD)

    directory = directory if rank == 0 else directory / "stale"
    if rank == 0:
        atomic.write_text(directory / "init.json", json.dumps({"diversity": 0.2}))
    measure = Measure(Evaluation(prompts="none", num_prompts=1), None, {}, directory, rank, 2)
    known = measure.initial(None)  # a rank that went on to evaluate would wait for the other one for ever

    def see(guard: HackingGuard, images: int, held: float, diversity: float) -> str:
        seen = diversity if rank == 0 else 0.2
        return guard.judge({"rewards": {"held": held}, "diversity": seen}, facts(images)).action

    best = FakeCheckpoints(result / f"best_{rank}")
    first = HackingGuard(guard, directory, best, rank)
    first.begin(FakeMeasure(), None, facts(0))
    actions = [see(first, 10, 0.6, 0.2), see(first, 20, 0.7, 0.2), see(first, 30, 0.9, 0.05)]
    again = HackingGuard(guard, directory, best, rank)  # from a checkpoint at 20 images
    again.begin(FakeMeasure(), None, facts(20))
    actions += [see(again, 30, 0.9, 0.05), see(again, 40, 0.95, 0.05)]
    again.finish()
    found = {
        "actions": actions,
        "restored": best.restored,
        "guard": again.outcome["guard"]["best_images"],
        "known": known,
    }
    (result / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def test_two_ranks_obey_the_same_decision_and_restore_the_best_state_also_after_a_restart(tmp_path):
    run, result = tmp_path / "run", tmp_path / "result"
    result.mkdir()
    arguments = (str(tmp_path / "store"), run, result)
    torch.multiprocessing.spawn(guarded, arguments, nprocs=2)
    for rank in (0, 1):
        found = json.loads((result / f"{rank}.json").read_text())
        assert found["actions"] == ["go_on", "go_on", "go_on", "go_on", "roll_back"], "patience counts from before"
        assert found["restored"] == ["000000000020"], "the best that broke no rule, though 40 images scored higher"
        assert found["guard"] == 20
        assert found["known"] == {"diversity": 0.2}, "what rank 0 sees"


@pytest.fixture
def alone():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_after_a_return_the_undone_evaluations_count_for_no_patience_and_the_best_by_score_is_kept(tmp_path, alone):
    rule = {"metric": "diversity", "below": 0.5, "patience": 2, "action": "roll_back"}
    settings = Guard.model_validate({"rules": [rule], "best": {"metric": "rewards/held"}})
    run = small(tmp_path / "best", ["training.keep_checkpoints=1"])

    def begun(images: int) -> HackingGuard:
        made = HackingGuard(settings, tmp_path / "guard", run.saved, 0)
        made.begin(FakeMeasure(), torch.nn.Identity(), Facts(images, 1, "mlflow", config))
        return made

    config = flatten(run.experiment) | BY_HELD
    run.saved.config = config
    watched = begun(0)

    def see(images: int, held: float, diversity: float = 0.2) -> str:
        found = {"rewards": {"held": held}, "diversity": diversity}
        return watched.judge(found, Facts(images, 1, "mlflow", config)).action

    see(8, 0.6)
    see(24, 0.7)
    see(32, 0.65, diversity=0.05)
    watched.go_back(8)
    run.steps(2)
    better = run.everything()
    assert see(16, 0.8) == "go_on"
    assert see(24, 0.75, diversity=0.05) == "go_on", "the broken rule of 32 images was undone"
    watched = begun(24)  # a restart
    run.steps(1)
    assert see(32, 0.7, diversity=0.05) == "roll_back"
    watched.finish()
    assert watched.outcome["guard"]["best_images"] == 16
    assert all(torch.equal(better[name], value) for name, value in run.everything().items())
    assert run.saved.store.names() == ["000000000016"]
    seen = [entry["images"] for entry in json.loads((tmp_path / "guard" / "history.json").read_text())]
    assert seen == [0, 8, 16, 24, 32]


def test_a_best_by_another_number_is_no_best(tmp_path, alone):
    run = small(tmp_path / "best")
    config = flatten(run.experiment) | BY_HELD
    run.saved.config = config
    facts = Facts(8, 1, "mlflow", config, score=5.0)
    run.saved.save(facts)
    rule = {"metric": "diversity", "below": 0.5, "action": "roll_back"}
    by_diversity = Guard.model_validate({"rules": [rule], "best": {"metric": "diversity"}})
    watched = HackingGuard(by_diversity, tmp_path / "guard", run.saved, 0)
    now = replace(facts, config=config | {"guard.best.metric": "diversity"}, score=None)
    watched.begin(FakeMeasure(), torch.nn.Identity(), now)
    assert run.saved.store.names() == []
    assert watched.judge({"rewards": {"held": 0.1}, "diversity": 0.3}, replace(now, images=16)).keep


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("bound", ["below", "above"])
def test_what_is_not_finite_breaks_every_rule_on_it_is_never_best_and_always_beaten(value, bound):
    rules = guard(
        {"metric": "diversity", bound: 0.5, "action": "roll_back", "relative": "absolute"},
        best={"metric": "held", "mode": "min"},
    )
    decision = decide(rules, [INIT, seen(10, diversity=value, held=value)], INIT)
    assert (decision.action, decision.best, decision.keep) == ("roll_back", 0, False)
    assert "diversity is not finite: the generator drew pictures that are not" in str(decision)
    sound = seen(20, diversity={"below": 0.6, "above": 0.4}[bound])
    assert decide(rules, [INIT, sound], seen(10, held=value)).keep


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_that_breaks_its_rules_ends_everywhere_at_once_with_the_weights_of_the_best_evaluation(
    cluster, micro, micro_checkpoints, tmp_path
):
    said: list[str] = []
    run = micro(
        *GUARDED,
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
