"""`make align` for real: a job of a Ray head with a token, sent through the Jobs API and followed to its end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest

from slingstone.driver.head import Head

pytestmark = pytest.mark.ray
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def reached(tmp_path_factory):
    """The environment in which Ray's commands reach a head of this test's own."""
    head = Head(tmp_path_factory.mktemp("head"))
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    yield inherited | head.start()
    head.stop()


def make_align(environment: dict[str, str], config: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    variables = {"BIN": Path(sys.executable).parent, "CONFIG": config, "STORAGE": config.parent}
    command = ["make", "-o", ".venv/installed", "align", *(f"{name}={value}" for name, value in variables.items())]
    return subprocess.run(
        [*command, f"ARGS={' '.join(overrides)}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


def test_a_submitted_job_is_followed_to_its_summary(reached, write_run, tmp_path):
    done = make_align(reached, write_run(), "runtime.num_workers=1", "rewards.backend=in_process", "seed=3")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "32/32 images" in done.stdout
    assert "mlflow ui --backend-store-uri" in done.stdout
    summary = json.loads((tmp_path / "align" / "micro" / "summary.json").read_text())
    assert {"init", "aligned", "reference_2_steps"} <= set(summary)
    run = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}").get_run(summary["mlflow_run_id"])
    assert (run.info.status, run.data.params["seed"]) == ("FINISHED", "3")


def test_a_submitted_job_with_a_mistake_fails_and_names_it(reached, write_run):
    done = make_align(reached, write_run(), "training.num_image=5")
    assert done.returncode != 0
    assert "did you mean num_images?" in done.stdout + done.stderr
