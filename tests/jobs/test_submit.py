"""`make align` for real: a job of a Ray head with a token, checked here, sent through the Jobs API and followed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest

from slingstone.config.paths import ROOT as SOURCES
from slingstone.driver.head import Head

ROOT = Path(__file__).resolve().parents[2]
INHERITED = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MAKE"))}


@pytest.fixture(scope="module")
def reached(tmp_path_factory):
    """The environment in which Ray's commands reach a head of this test's own."""
    head = Head(tmp_path_factory.mktemp("head"))
    yield INHERITED | head.start()
    head.stop()


def making(config: Path, arguments: str) -> list[str]:
    variables = {"BIN": Path(sys.executable).parent, "CONFIG": config, "STORAGE": config.parent, "ARGS": arguments}
    return ["make", "-o", ".venv/installed", "align", *(f"{name}={value}" for name, value in variables.items())]


def make_align(environment: dict[str, str], config: Path, arguments: str) -> subprocess.CompletedProcess[str]:
    command = making(config, arguments)
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400, check=False)


def slingstone(environment: dict[str, str], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "slingstone", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_a_mistake_is_named_before_anything_starts(write_run):
    before, start = Head(SOURCES).pid, time.monotonic()
    done = make_align(INHERITED, write_run(), "training.num_image=5")
    took = time.monotonic() - start
    assert done.returncode != 0
    assert "did you mean num_images?" in done.stderr
    assert done.stdout == ""
    assert Head(SOURCES).pid == before
    assert took < 3, "half a second on an idle machine"


def test_overrides_with_spaces_and_brackets_arrive_whole(write_run):
    done = make_align(
        INHERITED, write_run(), "rewards.services=[{name: a, model: hps, checkpoint: no/such/place}] seed=x"
    )
    assert "seed = 'x'" in done.stderr
    assert "1 mistake\n" in done.stderr


@pytest.mark.ray
def test_a_submitted_job_is_followed_to_its_summary_in_our_lines_alone(reached, write_run, tmp_path):
    done = make_align(
        reached,
        write_run(),
        "runtime.num_workers=1 rewards.backend=in_process seed=3 evaluation.reference={steps: 2, guidance: 1}",
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0].startswith("align micro is sent to http://127.0.0.1:")
    assert not [line for line in lines if "INFO" in line or "WARNING" in line or "Ray" in line]
    assert not [line for line in lines if len(line) > 100 and str(tmp_path) not in line]
    assert any("] 32/32  " in line for line in lines)
    assert "images     pickscore   (hps)  diversity" in lines
    summary = json.loads((tmp_path / "align" / "micro" / "summary.json").read_text())
    assert {"init", "aligned", "reference_2_steps"} <= set(summary)
    run = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}").get_run(summary["mlflow_run_id"])
    assert (run.info.status, run.data.params["seed"]) == ("FINISHED", "3")


@pytest.mark.ray
@pytest.mark.slow
def test_a_first_ctrl_c_leaves_a_run_alone_and_a_second_one_stops_it_saved(reached, write_run, tmp_path):
    config, long = write_run(), "runtime.num_workers=1 training.num_images=800000 training.grid_every_images=400000"
    with subprocess.Popen(
        making(config, long), cwd=ROOT, env=reached, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if "/800000" in line:
                break
        second = make_align(reached, config, long)
        assert "align micro is at work already" in second.stderr
        assert "slingstone follow align/micro" in second.stderr
        listed = slingstone(reached, "status", "--storage", tmp_path).stdout
        assert "align/micro  running" in listed
        os.killpg(process.pid, signal.SIGINT)
        for line in process.stdout:
            said.append(line)
            if "Ctrl-C again" in line:
                break
        assert "slingstone stop align/micro" in said[-2]
        os.killpg(process.pid, signal.SIGINT)
        rest = process.stdout.read()
        process.wait(60)
    assert "saving at the end of this step" in rest
    assert "stopped; the same command continues align/micro" in rest
    directory = tmp_path / "align" / "micro"
    run_id = json.loads((directory / "mlflow.json").read_text())["run_id"]
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert client.get_run(run_id).info.status == "KILLED"
    assert any((directory / "checkpoints").iterdir())
    assert "align/micro  stopped" in slingstone(reached, "status", "--storage", tmp_path).stdout
    assert "no run of this name can be stopped" in slingstone(reached, "stop", "micro", "--storage", tmp_path).stderr
