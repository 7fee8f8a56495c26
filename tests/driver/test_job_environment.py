"""A password in the submitter's environment: no command line, no metadata of Ray, and all the same the job has it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from slingstone.driver.job_environment import adopt_environment, job_environment

ROOT = Path(__file__).resolve().parents[2]
CANARY = "c4n4ry"
URI = f"postgresql://me:{CANARY}@db.example.org/mlflow"


def test_a_password_goes_by_a_private_file_which_the_job_deletes(tmp_path, monkeypatch):
    told = job_environment({"MLFLOW_TRACKING_URI": URI, "SLINGSTONE_GIT_COMMIT": "abc", "HOME": "/me"}, tmp_path)
    assert CANARY not in json.dumps(told)
    assert told["SLINGSTONE_GIT_COMMIT"] == "abc"
    (file,) = tmp_path.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "forgotten afterwards")
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    adopt_environment()
    assert os.environ["MLFLOW_TRACKING_URI"] == URI
    assert list(tmp_path.iterdir()) == []


def test_an_address_without_a_password_is_passed_as_it_is():
    told = job_environment({"MLFLOW_TRACKING_URI": "http://mlflow:5000"}, None)
    assert told == {"MLFLOW_TRACKING_URI": "http://mlflow:5000"}


def test_a_password_for_a_job_elsewhere_is_refused_without_repeating_it():
    with pytest.raises(ValueError, match=r"MLFLOW_TRACKING_URI: holds credentials.*where the cluster starts") as caught:
        job_environment({"MLFLOW_TRACKING_URI": URI}, None)
    assert CANARY not in str(caught.value)


def test_make_puts_no_password_on_a_command_line(tmp_path):
    environment = os.environ | {"MLFLOW_TRACKING_URI": URI, "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:1"}
    shown = subprocess.run(
        ["make", "--dry-run", "align"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert "--submit" in shown.stdout
    assert CANARY not in shown.stdout
    asked = [sys.executable, "jobs/align.py", "configs/align/scenes.yaml", "--submit", "storage=/all/see/this"]
    done = subprocess.run(asked, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "holds credentials" in done.stderr
    assert CANARY not in done.stdout + done.stderr
