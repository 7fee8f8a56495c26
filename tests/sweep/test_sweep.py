"""A sweep on a local cluster: every trial accounted for, failures and interruptions included."""

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml
from PIL import Image

from slingstone.config import ConfigError, Sweep, load, load_as
from slingstone.config.sweep import Metric
from slingstone.driver import run_lease
from slingstone.sweep import analysis, search, table, trials

SHORT = ("runtime.num_workers=1", "runtime.engine=torch", "evaluation.reference=null", "evaluation.num_prompts=2")


@pytest.fixture
def write_sweep(write_run, tmp_path):
    """Write the YAML of a sweep over the micro run; return its path."""

    def write(**changes) -> Path:
        tree = {
            "name": "few",
            "storage": str(tmp_path),
            "run": str(write_run()),
            "trial_overrides": list(SHORT),
            "max_concurrent": 1,
            "space": {"objective.reward_weight": {"kind": "uniform", "low": 1, "high": 100, "log": True}},
            "search": {"kind": "optuna", "trials": 3},
            "objectives": [{"metric": "rewards/pickscore"}, {"metric": "diversity"}],
            "signal": {"metric": "rewards/hps"},
        }
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump(tree | changes))
        return path

    return write


ROOT = Path(__file__).resolve().parents[2]


def planned(path: Path) -> trials.PreparedSweep:
    return trials.prepare(load_as(Sweep, path))


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "sweep").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_configuration_is_valid(path):
    assert load_as(Sweep, path).name == path.stem


def test_every_mistake_of_a_sweep_is_named_at_once(write_sweep):
    space = {"a.b": {"kind": "uniform", "low": 2, "high": 1, "log": True}, "c": {"kind": "uniform", "low": "x"}}
    with pytest.raises(ConfigError) as caught:
        load_as(Sweep, write_sweep(space=space, search={"kind": "optuna"}, sgnal=1))
    for said in ("space.c.low = 'x'", "space.c.high: is missing", "search.trials: is missing", "did you mean signal?"):
        assert said in str(caught.value)
    with pytest.raises(ConfigError, match=r"space.a.b.low = 2.0: is not below high = 1.0"):
        load_as(Sweep, write_sweep(space={"a.b": space["a.b"]}))
    with pytest.raises(ConfigError, match=r"space.a.b.kind = 'uniform': cannot be laid on a grid"):
        load_as(Sweep, write_sweep(space={"a.b": {"kind": "uniform", "low": 1, "high": 2}}, search={"kind": "grid"}))


def test_a_path_or_a_value_that_the_run_does_not_have_is_refused_before_anything_starts(write_sweep):
    with pytest.raises(ConfigError, match=r"did you mean reward_weight\?"):
        planned(write_sweep(space={"objective.reward_weigh": {"kind": "choice", "values": [1, 2]}}))
    kinds = {"kind": "choice", "values": [{"kind": "kl"}, {"kind": "squared_l3"}]}
    with pytest.raises(ConfigError, match=r"objective.distance.kind = 'squared_l3'"):
        planned(write_sweep(space={"objective.distance": kinds}))


def test_what_all_trials_share_cannot_be_varied_and_what_is_a_trials_own_can(write_sweep):
    two = {"kind": "choice", "values": ["exact", "smooth"]}
    said = r"space\.rewards\.services\.hps\.preprocess: all trials share one service of each reward, so that"
    space = {"rewards.services.hps.preprocess": two}
    with pytest.raises(ValueError, match=said):
        planned(write_sweep(space=space))
    with pytest.raises(ValueError, match=r"trial_overrides: .* rewards\.services\.hps\.dtype cannot differ"):
        planned(write_sweep(trial_overrides=[*SHORT, "rewards.services.hps.dtype=bfloat16"]))
    with pytest.raises(ValueError, match=r"space\.rewards\.backend: all trials share"):
        planned(write_sweep(space={"rewards.backend": {"kind": "choice", "values": ["serve", "in_process"]}}))
    assert planned(write_sweep(space=space, overrides=["rewards.backend=in_process"])).num_trials == 3
    own = {"kind": "uniform", "low": 1, "high": 2}
    planned(write_sweep(space={"rewards.services.pickscore.weight": own, "rewards.services.pickscore.deadline_s": own}))


def test_a_signal_that_is_trained_on_is_refused(write_sweep):
    with pytest.raises(ValueError, match=r"the trials are trained on it; hold it out with rewards.services.pickscore"):
        planned(write_sweep(signal={"metric": "rewards/pickscore"}))
    with pytest.raises(ValueError, match=r"signal.metric = 'utility': no evaluation has it.*no ground truth"):
        planned(write_sweep(signal={"metric": "utility"}))


def test_a_trial_is_the_run_with_its_values_and_nothing_else_changed(write_sweep):
    kinds = {"kind": "choice", "values": [{"kind": "kl"}, {"kind": "pseudo_huber", "constant": 0.1}]}
    grid = planned(write_sweep(space={"objective.distance": kinds}, search={"kind": "grid"}))
    assert grid.num_trials == 2
    grid.begin()
    text = search.param_space(grid.sweep)["objective.distance"]["grid_search"][1]
    trial = grid.trial("few-1", {"objective.distance": text})
    assert trial == load(
        grid.given_file,
        [
            "objective.distance={kind: pseudo_huber, constant: 0.1}",
            "rewards.lifecycle=external",
            "name=few-1",
            *SHORT,
        ],
    )


def one_node(resources: dict[str, float]) -> list[dict[str, Any]]:
    return [{"Alive": True, "Labels": {}, "Resources": resources}]


def test_no_more_trials_start_than_the_cluster_holds(write_sweep):
    few = planned(write_sweep(max_concurrent=None))
    few.begin()
    assert search.concurrency(few, one_node({"CPU": 2.0})) == 2
    assert search.concurrency(few, one_node({"CPU": 64.0})) == 3, "there are no more trials"
    two = planned(write_sweep(name="two", max_concurrent=None, trial_overrides=["runtime.num_workers=2"]))
    two.begin()
    assert search.concurrency(two, one_node({"CPU": 5.0})) == 2
    with pytest.raises(ValueError, match="the cluster has 1"):
        search.concurrency(two, one_node({"CPU": 1.0}))


def test_early_stopping_has_no_rung_where_trials_end_anyway(write_sweep):
    rungs_from_8 = {"grace_images": 8, "reduction_factor": 2}
    few = planned(write_sweep(early_stopping=rungs_from_8, trial_overrides=[*SHORT, "training.warmup_images=0"]))
    few.begin()
    scheduler = search._scheduler(few)
    rungs = [milestone for milestone, _ in scheduler._brackets[0]._rungs]
    assert few.experiment.training.num_images == 32
    assert rungs == [16, 8]
    assert not scheduler._stop_last_trials, "the last evaluation is still to come"


def test_no_trial_may_be_stopped_before_its_generator_has_taken_a_step(write_sweep):
    with pytest.raises(ValueError, match=r"early_stopping.grace_images = 8: .* such as 24"):
        planned(write_sweep(early_stopping={"grace_images": 8}))


def test_the_recommended_trial_is_the_best_held_out_one_that_no_other_beats(write_sweep):
    names = {"objectives": (Metric(metric="a"), Metric(metric="b", mode="min")), "signal": Metric(metric="hps")}
    few = planned(write_sweep()).sweep.model_copy(update=names)

    def row(name: str, a: float, b: float, hps: float) -> dict:
        return {"name": name, "metrics": {"a": a, "b": b, "hps": hps}}

    rows = [
        row("high", 3.0, 3.0, 0.1),
        row("beaten", 2.0, 3.0, 0.9),
        row("low", 1.0, 1.0, 0.2),
        row("twin", 1.0, 1.0, 0.0),
    ]
    assert [found["name"] for found in analysis.pareto_front(few, rows)] == ["high", "low", "twin"]
    assert analysis.recommended(few, rows)["name"] == "low"
    worse = few.model_copy(update={"signal": Metric(metric="hps", mode="min")})
    assert analysis.recommended(worse, rows)["name"] == "twin"

    for value in (math.nan, math.inf, -math.inf):
        lost = [row("lost", value, value, value), *rows]
        for chosen in (few, worse):
            assert analysis.recommended(chosen, lost)["name"] == analysis.recommended(chosen, rows)["name"]


def test_the_search_learns_from_all_objectives_and_stays_in_the_ranges(write_sweep):
    space = {
        "objective.reward_weight": {"kind": "uniform", "low": 1, "high": 100, "log": True},
        "objective.distance": {"kind": "choice", "values": [{"kind": "kl"}, {"kind": "squared_l2"}]},
    }
    few = planned(write_sweep(space=space, search={"kind": "optuna", "trials": 40, "startup_trials": 8}))
    searcher = search._search(few.sweep, 1)
    searcher.set_search_properties(None, None, search.param_space(few.sweep))
    weights = []
    for number in range(40):
        values = searcher.suggest(str(number))
        assert values["objective.distance"] in ("{kind: kl}", "{kind: squared_l2}")
        weights.append(values["objective.reward_weight"])
        searcher.on_trial_complete(str(number), {"rewards/pickscore": -abs(weights[-1] - 50), "diversity": 0.0})
    assert all(1 <= weight <= 100 for weight in weights)
    assert sum(abs(weight - 50) for weight in weights[-12:]) < 0.7 * sum(abs(weight - 50) for weight in weights[:12])


def test_the_path_that_made_the_difference_has_the_importance(write_sweep):
    space = {
        "objective.guidance.scale": {"kind": "uniform", "low": 0, "high": 1},
        "evaluation.seed": {"kind": "choice", "values": [0, 1]},
    }
    few = planned(write_sweep(space=space))

    def row(number: int) -> dict:
        values = {"objective.guidance.scale": number / 20, "evaluation.seed": str(number % 2)}
        return {"values": values, "metrics": {"rewards/hps": number / 20}}

    found = analysis.importances(few.sweep, [row(number) for number in range(20)])
    assert found.keys() == {"rewards/hps"}, "no trial says anything of the others"
    assert found["rewards/hps"]["objective.guidance.scale"] > 0.9
    assert analysis.importances(few.sweep, [row(number) for number in range(3)]) == {}


def test_a_sweep_goes_on_from_another_copy_of_the_working_directory(write_sweep, tmp_path, monkeypatch):
    path = write_sweep(overrides=["data.prompts=prompts.txt"])
    for copy in ("first", "second"):
        (tmp_path / copy).mkdir()
        (tmp_path / copy / "prompts.txt").write_text("a red circle\n")
        monkeypatch.chdir(tmp_path / copy)
        few = planned(path)
        few.begin()
        assert few.trial("few-1", {}).data.prompts == str(tmp_path / copy / "prompts.txt")
    assert load(few.given_file, []).data.prompts == "prompts.txt", "what is recommended is as it was given"


def test_a_second_submission_of_a_sweep_is_told_who_is_at_work(write_sweep):
    few = planned(write_sweep())
    with run_lease.held(few.directory, print), pytest.raises(ValueError, match="at work already, by process"):
        search.sweep(few, print)


def test_trials_that_were_stopped_early_come_after_the_complete_ones(write_sweep):
    few = planned(write_sweep())

    def row(name: str, outcome: str, score: float) -> dict:
        metrics = {"rewards/hps": score, "rewards/pickscore": score, "diversity": score}
        values = {"objective.reward_weight": 1.0}
        told = {"images": 8, "outcome": outcome, "reason": "", "pareto": False}
        return {"name": name, "values": values, "metrics": metrics, **told}

    trials = [row("short", "stopped early", 0.9), row("low", "complete", 0.1), row("high", "complete", 0.2)]
    written = table.markdown(few.sweep, {"trials": trials, "importances": {}, "recommended": "high"})
    assert written.index("| high") < written.index("| low") < written.index("| short")
    assert "does not compare" in written


@pytest.mark.slow
@pytest.mark.ray
def test_an_interrupted_sweep_goes_on_past_a_failed_trial_to_a_recommended_run(cluster, write_sweep, tmp_path):
    # Adam's first step is as long as the learning rate, so that this one leaves no finite picture.
    rates = {"kind": "choice", "values": [1.0e-4, 1.0e30]}
    space = {"training.generator_optimizer.lr": rates}
    few = planned(write_sweep(space=space, search={"kind": "grid"}, overrides=["rewards.backend=in_process"]))
    said: list[str] = []

    def interrupt(line: str) -> None:
        said.append(line)
        if "rewards/hps" in line:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        search.sweep(few, interrupt)
    assert not (few.directory / "summary.json").exists()
    finished = list(tmp_path.glob("align/few-*/summary.json"))
    assert len(finished) == 1, "one trial was done"
    before = finished[0].stat().st_mtime_ns
    summary = search.sweep(few, said.append)
    assert finished[0].stat().st_mtime_ns == before, "and is not done again"

    trials = summary["trials"]
    assert sorted(trial["outcome"] for trial in trials) == ["complete", "failed"]
    for trial in trials:
        failed = trial["values"]["training.generator_optimizer.lr"] == "1.0e+30"
        assert (trial["outcome"] == "failed") == failed
        assert bool(trial["reason"]) == failed
        if not failed:
            found = json.loads((Path(trial["directory"]) / "summary.json").read_text())
            assert trial["metrics"]["rewards/hps"] == found["aligned"]["rewards"]["hps"]
            assert trial["metrics"]["diversity"] == found["aligned"]["diversity"]
    best = next(trial for trial in trials if trial["name"] == summary["recommended"])
    ready = load(few.directory / "recommended.yaml")
    assert ready.training.num_images == few.experiment.training.num_images
    assert ready.training.generator_optimizer.lr == float(best["values"]["training.generator_optimizer.lr"])
    assert ready.rewards.lifecycle == "managed"
    assert Image.open(few.directory / "pareto.png").size > (300, 300)
    written = (few.directory / "table.md").read_text()
    assert written == table.markdown(few.sweep, summary)
    assert written.count("| failed: ") == 1

    client = mlflow.MlflowClient(summary["mlflow_uri"])
    experiment = client.get_experiment_by_name("slingstone")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert [run.info.run_id for run in parents] == [summary["mlflow_run_id"]], "one parent, before and after"
    assert parents[0].info.status == "FINISHED"
    children = {run.info.run_name: run for run in runs if run not in parents}
    assert children.keys() == {trial["name"] for trial in trials}
    for trial in trials:
        run = children[trial["name"]]
        assert run.data.tags["mlflow.parentRunId"] == summary["mlflow_run_id"]
        assert run.data.tags["outcome"] == trial["outcome"]
        assert run.info.status == ("FAILED" if trial["outcome"] == "failed" else "FINISHED")
    assert search.sweep(few, said.append) == summary
    with pytest.raises(ValueError, match="is of another sweep; give this one another name"):
        search.sweep(planned(write_sweep()), said.append)
