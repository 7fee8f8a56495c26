"""What reaches MLflow, in a real SQLite store."""

import re
from pathlib import Path

import mlflow
import pytest

from slingstone.config import flatten, load
from slingstone.tracking import Run, open_run, ready, store, tracking_uri
from slingstone.tracking.provenance import git_commit, lock_hash
from slingstone.tracking.run import METRICS_A_BATCH

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def storage(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("storage")


@pytest.fixture
def experiment(storage, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return load(ROOT / "configs" / "align" / "scenes.yaml", [f"storage={storage}"])


@pytest.fixture
def run(experiment, storage) -> Run:
    return open_run(experiment, tracking_uri(experiment), storage / "align" / "scenes")


def stored(run: Run):
    return mlflow.MlflowClient(run.uri).get_run(run.run_id)


def test_a_run_carries_its_whole_configuration_and_its_sources(experiment, run):
    found = stored(run)
    assert found.data.params == flatten(experiment)
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", found.data.tags["git_commit"])
    assert found.data.tags["lock_sha256"] == lock_hash()
    assert found.info.run_name == "scenes"
    assert found.info.status == "RUNNING"


def test_metrics_are_buffered_then_arrive_in_order_without_what_is_not_finite(run):
    for images in (64, 128, 192):
        run.metrics({"loss": float(images), "bad": float("nan")}, images)
    assert stored(run).data.metrics == {}
    run.end("FINISHED")
    history = mlflow.MlflowClient(run.uri).get_metric_history(run.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(64, 64.0), (128, 128.0), (192, 192.0)]
    assert set(stored(run).data.metrics) == {"loss"}
    assert stored(run).info.status == "FINISHED"


def test_metrics_beyond_one_batch_of_mlflow_all_arrive(run):
    run.metrics({f"m{index}": float(index) for index in range(METRICS_A_BATCH + 5)}, 1)
    run.flush()
    assert len(stored(run).data.metrics) == METRICS_A_BATCH + 5


def test_artifacts_lie_under_storage(run, storage):
    (storage / "note.txt").write_text("x")
    run.artifact(storage / "note.txt", "notes")
    uri = stored(run).info.artifact_uri
    assert (Path(uri.removeprefix("file://")) / "notes" / "note.txt").read_text() == "x"
    assert storage.resolve() in Path(uri.removeprefix("file://")).parents


def test_artifacts_lie_under_storage_where_the_user_named_the_database_too(experiment, storage, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # where MLflow by itself would put them
    named = experiment.tracking.model_copy(update={"uri": tracking_uri(experiment), "experiment": "named"})
    experiment = experiment.model_copy(update={"tracking": named})
    uri = stored(open_run(experiment, tracking_uri(experiment), storage / "align" / "scenes")).info.artifact_uri
    assert storage.resolve() in Path(uri.removeprefix("file://")).parents


def test_a_continued_run_keeps_its_id_and_runs_again(experiment, run, storage):
    run.end("FAILED")
    again = open_run(experiment, run.uri, storage, run_id=run.run_id)
    assert again.run_id == run.run_id
    assert stored(again).info.status == "RUNNING"


def test_a_run_that_was_deleted_in_mlflow_goes_on_in_a_new_one(experiment, run, storage):
    mlflow.MlflowClient(run.uri).delete_run(run.run_id)
    again = open_run(experiment, run.uri, storage / "align" / "scenes", run_id=run.run_id)
    assert again.run_id != run.run_id
    assert stored(again).info.status == "RUNNING"
    assert open_run(experiment, run.uri, storage / "align" / "scenes", run_id="0" * 32).run_id, "or was erased"


def test_an_experiment_that_was_deleted_in_mlflow_is_refused_with_how_to_restore_it(experiment, run):
    named = experiment.model_copy(update={"tracking": experiment.tracking.model_copy(update={"experiment": "gone"})})
    client = mlflow.MlflowClient(run.uri)
    number = client.create_experiment("gone")
    assert ready(named) == run.uri
    client.delete_experiment(number)
    with pytest.raises(ValueError, match=rf"tracking\.experiment = 'gone': was deleted .* restore -x {number}"):
        ready(named)


def test_params_longer_and_more_than_mlflow_takes_at_once_are_kept(run, storage):
    params = {"long": "x" * 9000, **{f"key{number}": "v" for number in range(250)}}
    made = store.create_run(run.uri, "slingstone", "many", params, {}, storage)
    assert len(stored(made).data.params) == 251
    assert stored(made).data.params["long"] == "x" * store.PARAM_VALUE_LIMIT


def test_a_run_of_a_sweep_is_nested_under_its_parent(experiment, run, storage):
    child = open_run(experiment, run.uri, storage / "align" / "scenes", parent=run.run_id)
    assert stored(child).data.tags["mlflow.parentRunId"] == run.run_id


def test_tags_say_by_what_algorithm_and_for_which_networks(experiment, storage, monkeypatch):
    monkeypatch.chdir(ROOT)
    tags = stored(open_run(experiment, tracking_uri(experiment), storage / "align" / "scenes")).data.tags
    assert (tags["kind"], tags["model_family"]) == ("align", "StableDiffusionPipeline")
    assert tags["algorithm"] == "diff-instruct* pseudo_huber inner"
    for overrides, name in (
        (["objective.distance={kind: kl}"], "diff-instruct++ kl inner"),
        (["objective.distance={kind: kl}", "objective.reward_weight=0"], "diff-instruct kl inner"),
        (["objective.reward_weight=0", "objective.guidance.scale=0"], "score implicit matching pseudo_huber"),
        (["objective.flow=detach_networks"], "diff-instruct* pseudo_huber inner detach_networks"),
    ):
        assert store.algorithm(load(ROOT / "configs" / "align" / "scenes.yaml", overrides)) == name
    assert store.model_family("owner/repository") == "owner/repository"


def test_a_picture_lies_at_its_images_for_the_ui(run):
    from PIL import Image

    run.picture(Image.new("RGB", (4, 4), "red"), "grid", 64)
    client = mlflow.MlflowClient(run.uri)
    files = [Path(file.path).name for file in client.list_artifacts(run.run_id, "images")]
    assert any("grid" in name and "step+64+" in name for name in files), files


def test_the_store_is_the_configured_one_then_the_environments_then_a_file(experiment, storage, monkeypatch):
    assert tracking_uri(experiment) == f"sqlite:///{storage.resolve() / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert tracking_uri(experiment) == "http://server:5000"
    named = experiment.model_copy(update={"tracking": experiment.tracking.model_copy(update={"uri": "http://own"})})
    assert tracking_uri(named) == "http://own"


def test_a_submitted_job_is_told_its_commit(monkeypatch):
    monkeypatch.setenv("SLINGSTONE_GIT_COMMIT", "abc")
    assert git_commit() == "abc"
