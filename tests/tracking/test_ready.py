"""A store is asked for, and a fresh database made, before a job holds anything."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import ray

from slingstone import tracking
from slingstone.driver import launch
from slingstone.tracking import store

JOB = """
import sys
from pathlib import Path
from slingstone import tracking
from slingstone.config import load
run = load("configs/align/scenes.yaml", [f"storage={sys.argv[1]}"])
uri = tracking.ready(run)
print(tracking.create_run(uri, "slingstone", "first", {}, {}, Path(sys.argv[1])).run_id)
"""


@pytest.fixture(autouse=True)
def no_store_of_the_environment(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.mark.slow
def test_four_jobs_that_start_together_on_a_fresh_store_all_run(tmp_path):
    command = [sys.executable, "-c", JOB, str(tmp_path)]
    jobs = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    outcomes = [(*job.communicate(timeout=300), job.returncode) for job in jobs]
    assert [code for _, _, code in outcomes] == [0] * 4, [errors[-500:] for _, errors, _ in outcomes]
    assert len({printed for printed, _, _ in outcomes}) == 4


def test_one_process_at_a_time_makes_the_tables(micro, tmp_path, monkeypatch):
    inside, most = [], []

    class Client:
        def get_experiment_by_name(self, name: str) -> None:
            inside.append(threading.get_ident())
            most.append(len(inside))
            time.sleep(0.05)
            inside.remove(threading.get_ident())

    monkeypatch.setattr(store, "new_client", lambda uri: Client())
    run = micro(f"tracking.uri=sqlite:///{tmp_path}/new/directory/mlflow.db")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(tracking.ready, [run] * 4))
    assert most == [1, 1, 1, 1]
    assert (tmp_path / "new" / "directory").is_dir(), "else MLflow would look for it for an hour"


@pytest.mark.parametrize(
    "uri", ["http://127.0.0.1:1", "sqlite:///{here}/run.yaml", "sqlite:////dev/null/mlflow.db", "nonsense://x"]
)
def test_a_store_that_does_not_answer_ends_a_run_before_its_rewards_are_started(micro, tmp_path, uri):
    run = micro(f"tracking.uri={uri.format(here=tmp_path)}")
    was = ray.is_initialized()
    with pytest.raises(ValueError, match=r"tracking\.uri = .*: does not answer; start it, or name another"):
        launch.align(run, print)
    assert ray.is_initialized() == was


def test_the_password_of_a_store_that_does_not_answer_is_not_told(micro, monkeypatch):
    run = micro()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:1")
    with pytest.raises(ValueError, match="does not answer") as caught:
        tracking.ready(run)
    assert "secret" not in str(caught.value)
    assert Path(run.storage).is_dir()
