"""What is refused before anything is held, and what an earlier run allows."""

import shutil
from pathlib import Path

import pytest

from slingstone.checkpoints.run_directory import RunDirectory
from slingstone.config import load
from slingstone.config.paths import located
from slingstone.driver.preflight import prepare

ROOT = Path(__file__).resolve().parents[2]
SCENES = ROOT / "configs" / "align" / "scenes.yaml"


def test_paths_are_found_from_the_working_directory_then_from_the_root(tmp_path, monkeypatch):
    (tmp_path / "README.md").write_text("mine")
    monkeypatch.chdir(tmp_path)
    assert located("README.md") == str(tmp_path / "README.md")
    assert located("pyproject.toml") == str(ROOT / "pyproject.toml")
    assert located("stabilityai/sdxl-turbo") == "stabilityai/sdxl-turbo"


def test_sources_that_were_unpacked_for_a_job_and_are_gone_are_found_beside_this_source(tmp_path):
    file = "platform/slingstone/world/scenes/prompts/train.txt"
    unpacked = tmp_path / "working_dir_files" / "_ray_pkg_0d0b" / file
    assert located(str(unpacked)) == str(ROOT / file)
    unpacked.parent.mkdir(parents=True)
    unpacked.write_text("a red circle")
    assert located(str(unpacked)) == str(unpacked), "while they are there, they are what the job saw"


def test_hub_ids_pass_and_stay_as_they_are(tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\n")
    overrides = ["models.reference=org/base", "models.generator=org/turbo", "rewards.services=[]"]
    overrides += ["objective.reward_weight=0", f"data.prompts={prompts}", f"evaluation.prompts={prompts}"]
    run = prepare(load(SCENES, overrides))
    assert (run.models.reference, run.models.generator, run.models.assistant) == ("org/base", "org/turbo", None)


def test_a_file_of_weights_passes_as_the_generator_and_not_as_the_reference(tmp_path):
    weights = tmp_path / "unet.bin"
    weights.write_bytes(b"\0")
    asked = ["models.reference=org/base", f"models.generator={weights}", "rewards.services=[]"]
    asked += ["objective.reward_weight=0"]
    assert prepare(load(SCENES, asked)).models.generator == str(weights)
    with pytest.raises(ValueError, match=r"models.reference = .*unet.bin': is no diffusers pipeline"):
        prepare(load(SCENES, [*asked, f"models.reference={weights}"]))


def test_a_pipeline_with_weights_of_a_variant_alone_is_refused_before_it_is_loaded(micro, micro_checkpoints, tmp_path):
    pipeline = shutil.copytree(micro_checkpoints / "generator", tmp_path / "generator")
    weights = pipeline / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.copy(weights, weights.with_suffix(".fp16.safetensors"))
    assert micro(f"models.generator={pipeline}").models.generator == str(pipeline), "beside whole ones it does no harm"
    weights.unlink()
    with pytest.raises(
        ValueError, match=r"models\.generator = .*: unet/ holds weights of a variant alone, such as fp16"
    ):
        micro(f"models.generator={pipeline}")


def test_a_storage_that_is_no_directory_and_prompts_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "prompts.bin").write_bytes(b"\xff\xfe\x00")
    overrides = ["storage=s3://bucket/x", f"data.prompts={tmp_path / 'prompts.bin'}"]
    with pytest.raises(ValueError, match="is no directory") as caught:
        prepare(load(SCENES, overrides))
    assert "is not UTF-8 text" in str(caught.value)


def test_a_run_may_grow_but_not_become_another(tmp_path):
    history = RunDirectory(tmp_path / "align" / "scenes")
    here = f"storage={tmp_path}"
    run = load(SCENES, [here])
    history.check(run)
    history.begin(run, "sqlite:///x", "id")
    (history.directory / "checkpoints" / "000000000032").mkdir(parents=True)
    history.check(run)
    history.check(load(SCENES, [here, "training.num_images=99999", "rewards.lifecycle=external"]))
    with pytest.raises(ValueError, match=r"differs in seed \(0 -> 1\), training.batch_size \(32 -> 64\)"):
        history.check(load(SCENES, [here, "training.batch_size=64", "seed=1"]))


def test_a_run_is_not_continued_under_rewards_whose_files_were_replaced(micro, tmp_path, rewards_root):
    shutil.copytree(rewards_root / "hps", tmp_path / "hps")
    run = micro(f"rewards.services.hps.checkpoint={tmp_path / 'hps'}")
    history = RunDirectory(tmp_path / "align" / "micro")
    history.begin(run, "sqlite:///x", "id")
    (history.directory / "checkpoints" / "000000000032").mkdir(parents=True)
    history.check(run)
    (weights,) = (tmp_path / "hps").glob("*.pt")
    weights.write_bytes(weights.read_bytes()[::-1])
    with pytest.raises(ValueError, match=r"differs in contents of rewards\.services\.hps\.checkpoint \("):
        history.check(run)


def test_checkpoints_that_lie_elsewhere_are_not_forgotten(tmp_path):
    history, here = RunDirectory(tmp_path / "align" / "scenes"), f"storage={tmp_path}"
    history.begin(load(SCENES, [here]), "sqlite:///x", "id")
    (history.directory / "checkpoints" / "000000000032").mkdir(parents=True)
    moved = load(SCENES, [here, f"recovery.checkpoints={tmp_path / 'new'}"])
    with pytest.raises(
        ValueError, match=r"recovery.checkpoints = .*lie in .*align/scenes/checkpoints; name that place"
    ):
        history.check(moved)
    (tmp_path / "new" / "align" / "scenes").mkdir(parents=True)
    (history.directory / "checkpoints").rename(tmp_path / "new" / "align" / "scenes" / "checkpoints")
    history.check(moved)
    assert history.mlflow_run("sqlite:///x") == "id"


def test_a_run_that_left_no_checkpoint_is_forgotten(tmp_path):
    history = RunDirectory(tmp_path)
    here = f"storage={tmp_path}"  # where no earlier run has left checkpoints
    history.begin(load(SCENES, [here]), "sqlite:///x", "id")
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "init.json").write_text("{}")
    history.check(load(SCENES, [here, "seed=1"]))
    assert history.mlflow_run("sqlite:///x") is None
    assert not (tmp_path / "evaluation").exists()


def test_only_a_run_in_the_same_store_is_continued_there(tmp_path):
    history = RunDirectory(tmp_path)
    history.begin(load(SCENES), "sqlite:///x", "id")
    assert history.mlflow_run("sqlite:///x") == "id"
    assert history.mlflow_run("http://elsewhere") is None
