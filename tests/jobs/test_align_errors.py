"""Wrong input to jobs/align.py: one clear message, exit code 1, no traceback of ours, within seconds."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from slingstone.cli import main
from tests import tiny

ROOT = Path(__file__).resolve().parents[2]


def align(*arguments: str | Path) -> tuple[subprocess.CompletedProcess[str], float]:
    start = time.monotonic()
    command = [sys.executable, "jobs/align.py", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300, check=False)
    return done, time.monotonic() - start


def refused(done: subprocess.CompletedProcess[str], *fragments: str) -> None:
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stderr.count("error:") == 1
    for fragment in fragments:
        assert fragment in done.stderr


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("errors")
    tiny.write_pipeline(directory / "pipeline")
    prompts = tiny.write_prompts(directory / "prompts.txt")
    (directory / "nothing").mkdir()
    (directory / "empty.txt").write_text("\n \n")
    tree = yaml.safe_load((ROOT / "configs" / "align" / "scenes.yaml").read_text())
    tree["storage"] = str(directory / "outputs")
    tree["models"] |= {"reference": str(directory / "pipeline"), "generator": str(directory / "pipeline")}
    tree["data"]["prompts"] = tree["evaluation"]["prompts"] = str(prompts)
    for service in tree["rewards"]["services"]:
        service["checkpoint"] = str(directory / "nothing")
    path = directory / "run.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def test_a_dry_run_prints_the_resolved_run_and_stops(config):
    done, seconds = align(config, "--dry-run", "seed=7", "objective.guidance.scale=3")
    assert done.returncode == 0, done.stderr
    printed = yaml.safe_load(done.stdout)
    assert (printed["seed"], printed["objective"]["guidance"]["scale"]) == (7, 3.0)
    assert not (config.parent / "outputs").exists()
    assert seconds < 60, "an architecture that is in no table is counted by torch"


def test_a_relative_path_is_found_from_the_root_and_made_absolute(config):
    done, _ = align(config, "--dry-run", "data.prompts=configs/align/scenes.yaml")
    assert yaml.safe_load(done.stdout)["data"]["prompts"] == str(ROOT / "configs" / "align" / "scenes.yaml")


def test_an_unknown_key_is_refused(config):
    done, seconds = align(config, "training.num_image=5", "objectiv.reward_weight=3")
    refused(done, "2 mistakes", "did you mean num_images?", "did you mean objective?")
    assert seconds < 5


def test_a_missing_and_an_empty_prompts_file_are_refused_together(config):
    empty = config.parent / "empty.txt"
    done, seconds = align(config, "data.prompts=absent.txt", f"evaluation.prompts={empty}")
    absent = "data.prompts: prompts file 'absent.txt' does not exist"
    refused(done, absent, f"evaluation.prompts: prompts file '{empty}' has no prompt")
    assert seconds < 5


def test_a_directory_that_is_no_pipeline_is_refused(config):
    done, seconds = align(config, f"models.generator={config.parent / 'nothing'}", "models.reference=no/such/place")
    refused(done, "models.generator", "has no model_index.json", "models.reference = 'no/such/place': does not exist")
    assert seconds < 5


def refused_by_the_cluster(capsys: pytest.CaptureFixture[str], config: Path, *overrides: str) -> str:
    """Return what the command says, called in this process, which has joined the tests' cluster."""
    assert main(["align", str(config), *overrides]) == 1
    said = capsys.readouterr().err
    assert said.count("error:") == 1
    return said


@pytest.mark.ray
def test_more_workers_than_cpus_are_refused(cluster, config, capsys):
    said = refused_by_the_cluster(capsys, config, "runtime.num_workers=512", "training.batch_size=512")
    for fragment in ("runtime.num_workers = 512", "512 CPUs", "the cluster has", "take fewer workers"):
        assert fragment in said


@pytest.mark.ray
def test_a_reward_that_is_not_deployed_is_refused(cluster, config, capsys):
    said = refused_by_the_cluster(capsys, config, "rewards.lifecycle=external", "runtime.num_workers=1")
    assert "pickscore (application 'reward-pickscore' is not deployed)" in said
    assert "set rewards.lifecycle: managed" in said


@pytest.mark.ray
def test_a_reward_that_cannot_start_is_refused_with_its_reason(cluster, config, capsys):
    only = "rewards.services=[{name: pickscore, model: pickscore, num_cpus: 0, checkpoint: %s}]"
    said = refused_by_the_cluster(capsys, config, only % (config.parent / "nothing"), "runtime.num_workers=1")
    (error,) = (line for line in said.splitlines() if line.startswith("error:"))
    assert "pickscore did not start" in error
    assert "nothing" in error


@pytest.mark.ray
def test_a_reward_that_cannot_be_differentiated_is_refused_before_training_with_what_to_do(cluster, config, capsys):
    (config.parent / "without gradient").mkdir()
    mine = "{name: mine, model: 'tests.reward_services.untrustworthy:Untrustworthy', num_cpus: 0, checkpoint: '%s'}"
    only = f"rewards.services=[{mine % (config.parent / 'without gradient')}]"
    said = refused_by_the_cluster(capsys, config, only, "runtime.num_workers=1")
    assert "rewards.services.mine.weight = 1: its scores have no gradient" in said
    assert "hold it out with rewards.services.mine.weight=0" in said
