"""Every path of a configuration means one place, in every process of a cluster and at every submission."""

import os
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest
import yaml
from pydantic import AfterValidator, BaseModel

from slingstone.checkpoints.run_directory import checkpoints
from slingstone.compare import shards
from slingstone.config import Comparison, Experiment, Sweep, load, load_as
from slingstone.config.paths import resolved
from slingstone.driver.preflight import prepare
from slingstone.sweep import trials
from slingstone.tracking import tracking_uri
from workbench.claims import plan
from workbench.soak import run as soak
from workbench.soak.cluster import Cluster

ROOT = Path(__file__).resolve().parents[2]
RELATIVE = ("storage=out", "recovery.checkpoints=ckpt", "tracking.uri=sqlite:///rel.db")
NO_PATHS = {
    *("name", "metric", "keep_best", "column", "groups", "experiment", "title", "claim", "discussion", "metrics"),
    *("model", "device", "node_label", "trainer", "rewards", "url", "target_modules", "parameters", "scheduler"),
    *("application", "overrides", "trial_overrides", "space", "vary", "call", "values"),
}
"""Texts of configurations that are no place of files."""


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A working directory of its own."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path / "here"


def texts(kind: Any, path: str = "") -> dict[str, bool]:
    """Return every field of a tree that may hold a text, and whether it is made absolute."""
    found: dict[str, bool] = {}
    for name, field in kind.model_fields.items():
        annotation = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
        for part in parts(annotation):
            if isinstance(part, type) and issubclass(part, BaseModel):
                found |= texts(part, f"{path}{name}.")
            elif get_origin(part) is Annotated or part in (str, Any):
                marked = any(isinstance(mark, AfterValidator) for mark in get_args(part)[1:])
                found[f"{path}{name}"] = marked and get_args(part)[0] is str
    return found


def parts(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Annotated and get_args(annotation)[0] is str:
        return [annotation]
    inside = [one for part in get_args(annotation) for one in parts(part)]
    return inside if get_args(annotation) else [annotation]


@pytest.mark.parametrize("kind", [Experiment, Comparison, Sweep, plan.Claims])
def test_every_text_of_a_configuration_is_made_absolute_or_is_known_to_be_no_path(kind):
    forgotten = [path for path, absolute in texts(kind).items() if not absolute and path.split(".")[-1] not in NO_PATHS]
    assert forgotten == []
    assert sum(texts(kind).values()) >= 2, "the search itself finds the paths"


def test_checkpoints_and_mlflow_of_a_run_lie_where_the_user_stands(micro, here):
    run = micro(*RELATIVE, "rewards.services.hps.tokenizer=tokens")
    assert checkpoints(run) == f"{here}/ckpt/align/micro/checkpoints"
    assert (run.storage, run.tracking.uri) == (f"{here}/out", f"sqlite:///{here}/rel.db")
    os.chdir("/")
    assert tracking_uri(run) == f"sqlite:///{here}/rel.db", "another process reads the same"
    assert prepare(run) == run


def test_so_do_those_of_a_sweeps_trials_whatever_directory_a_trial_starts_in(write_run, here):
    (here / "prompts.txt").write_text("a red circle\n")
    space = {"data.prompts": {"kind": "choice", "values": ["prompts.txt"]}}
    tree = {"name": "few", "storage": "out", "run": str(write_run()), "space": space, "search": {"kind": "grid"}}
    tree |= {"objectives": [{"metric": "diversity"}], "signal": {"metric": "rewards/hps"}}
    tree |= {"trial_overrides": list(RELATIVE[1:])}
    (here / "sweep.yaml").write_text(yaml.safe_dump(tree))
    few = trials.prepare(load_as(Sweep, here / "sweep.yaml"))
    few.begin()
    os.chdir("/")
    trial = few.trial("few-1", {"data.prompts": "prompts.txt"})
    assert checkpoints(trial) == f"{here}/ckpt/align/few-1/checkpoints"
    assert (trial.tracking.uri, trial.data.prompts) == (f"sqlite:///{here}/rel.db", f"{here}/prompts.txt")
    os.chdir(here)
    tree["space"] = {"data.prompts": {"kind": "choice", "values": ["prompts.txt", "absent.txt"]}}
    (here / "sweep.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(ValueError, match=r"absent\.txt"):
        trials.prepare(load_as(Sweep, here / "sweep.yaml"))


def test_a_submitted_sweep_needs_one_absolute_storage_its_own(write_run, here, tmp_path, monkeypatch):
    unpacked = tmp_path / "working_dir_files" / "_ray_pkg_0d0b"
    unpacked.mkdir(parents=True)
    given = yaml.safe_load(write_run().read_text()) | {"storage": "outputs"}
    (unpacked / "run.yaml").write_text(yaml.safe_dump(given))
    space = {"seed": {"kind": "choice", "values": [0, 1]}}
    tree = {"name": "few", "storage": str(here), "run": "run.yaml", "space": space, "search": {"kind": "grid"}}
    tree |= {"objectives": [{"metric": "diversity"}], "signal": {"metric": "rewards/hps"}}
    (unpacked / "sweep.yaml").write_text(yaml.safe_dump(tree))
    monkeypatch.chdir(unpacked)
    assert trials.prepare(load_as(Sweep, "sweep.yaml")).experiment.storage == str(here)


def test_so_do_those_of_claims_and_comparisons(write_run, micro_checkpoints, here):
    tree: dict[str, Any] = {"name": "few", "storage": "out", "run": str(write_run()), "overrides": list(RELATIVE[1:])}
    tree |= {"seeds": [0], "studies": [{"name": "one", "title": "One", "arms": [{"name": "plain"}]}]}
    (here / "claims.yaml").write_text(yaml.safe_dump(tree))
    (run,) = plan.prepare(load_as(plan.Claims, here / "claims.yaml")).runs.values()
    assert checkpoints(run).startswith(f"{here}/ckpt/align/few-")
    assert (run.storage, run.tracking.uri) == (f"{here}/out", f"sqlite:///{here}/rel.db")

    models = {"reference": str(micro_checkpoints / "reference"), "generator": str(micro_checkpoints / "generator")}
    entry = {"kind": "generator", "name": "ours", "models": models | {"generator_timestep": 625}}
    tree = {"name": "few", "storage": "out", "models": [entry], "tracking": {"uri": "mlruns"}}
    tree["prompts"] = [{"name": "own", "path": str(micro_checkpoints / "prompts.txt")}]
    (here / "evaluate.yaml").write_text(yaml.safe_dump(tree))
    found = shards.prepare(load_as(Comparison, here / "evaluate.yaml"))
    assert (found.storage, found.tracking.uri) == (f"{here}/out", f"{here}/mlruns")


def test_so_do_those_of_a_soaks_runs(micro, here):
    soak.variant(micro(*RELATIVE[:2]), "undisturbed", Cluster(here))
    os.chdir("/")  # the job starts elsewhere
    run = prepare(load(here / "out" / "undisturbed.yaml"))
    assert (run.storage, checkpoints(run)) == (f"{here}/out", f"{here}/ckpt/align/undisturbed/checkpoints")


@pytest.mark.parametrize(
    ("uri", "absolute"),
    [
        ("sqlite:///a/../rel.db?timeout=30", "sqlite:///{here}/rel.db?timeout=30"),
        ("sqlite+pysqlite:///rel.db", "sqlite+pysqlite:///{here}/rel.db"),
        ("sqlite:////abs/rel.db", "sqlite:////abs/rel.db"),
        ("sqlite:///a b.db", "sqlite:///{here}/a b.db"),
        ("file:runs", "file://{here}/runs"),
        ("file:///abs/runs", "file:///abs/runs"),
        ("./runs", "{here}/runs"),
        ("http://host:5000", "http://host:5000"),
        ("postgresql://host/mlflow", "postgresql://host/mlflow"),
        ("databricks", "databricks"),
        ("databricks://profile", "databricks://profile"),
    ],
)
def test_a_tracking_uri_names_the_same_store_everywhere(micro, here, uri, absolute):
    assert micro(f"tracking.uri={uri}").tracking.uri == absolute.format(here=here)


@pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///:memory:"])
def test_a_tracking_database_in_memory_is_refused(micro, monkeypatch, uri):
    with pytest.raises(ValueError, match=r"tracking.uri = .*is a database in memory.*name a file"):
        micro(f"tracking.uri={uri!r}")
    run = micro()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ValueError, match=r"MLFLOW_TRACKING_URI = .*in memory"):
        tracking_uri(run)


def test_a_relative_store_in_the_environment_is_refused_with_the_absolute_one(micro, here, monkeypatch):
    run = micro()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///rel.db")
    with pytest.raises(ValueError, match=rf"MLFLOW_TRACKING_URI = .*set it to sqlite:///{here}/rel.db"):
        tracking_uri(run)


def test_results_in_a_directory_that_goes_with_the_job_are_refused(micro, tmp_path, monkeypatch):
    unpacked = tmp_path / "working_dir_files" / "_ray_pkg_0d0b"
    unpacked.mkdir(parents=True)
    monkeypatch.chdir(unpacked)
    with pytest.raises(ValueError, match="for this job and deletes") as caught:
        micro(*RELATIVE)
    for said in ("storage = 'out'", "recovery.checkpoints = 'ckpt'", "tracking.uri = 'sqlite:///rel.db'"):
        assert said in str(caught.value)
    assert "absolute path" in str(caught.value)


@pytest.mark.parametrize("name", ["a?b", "a%20b", "a#b"])
@pytest.mark.parametrize("key", ["storage", "recovery.checkpoints", "tracking.uri"])
def test_a_place_that_a_uri_would_name_otherwise_is_refused(tmp_path, name, key):
    """SQLite would write to `a`, MLflow to `a b`, and two storages would share a database."""
    asked = f"{key}={tmp_path / name}"
    with pytest.raises(ValueError, match=rf"{key} = .*holds '.', which means something else in a URI"):
        resolved(load(ROOT / "configs" / "align" / "scenes.yaml", [asked]))
    resolved(load(ROOT / "configs" / "align" / "scenes.yaml", [f"{key}={tmp_path / 'a b=ü&c'}"]))
    with pytest.raises(ValueError, match="holds '#'"):
        resolved(load(ROOT / "configs" / "align" / "scenes.yaml", ["tracking.uri='sqlite:///a#b.db'"]))


def test_a_home_directory_is_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    run = resolved(load(ROOT / "configs" / "align" / "scenes.yaml", ["storage=~/out"]))
    assert run.storage == f"{tmp_path}/out"
