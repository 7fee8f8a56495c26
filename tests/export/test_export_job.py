"""Exports of a run's checkpoints, loaded by a process that knows nothing of this package."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from slingstone.checkpoints.manifest import Facts, Manifest, write
from slingstone.checkpoints.run_directory import RunDirectory
from slingstone.checkpoints.store import open_store
from slingstone.cli import main
from slingstone.config import Experiment
from slingstone.export import hub
from slingstone.export.onnx_file import TOLERANCE, write_onnx
from slingstone.networks.latent_diffusion import load
from slingstone.networks.sampling import one_step_sampler
from slingstone.worker.assembly import assemble
from slingstone.worker.assignment import Assignment
from tests import tiny_sdxl
from tests.whole import whole

PROMPTS = ["a red disc", "a white ring"]
PLAIN = ("runtime.engine=torch", "objective.reward_weight=0", "rewards.services=[]", "training.warmup_images=0")
LORA = "models.lora={rank: 4}"
STRANGER = """
import sys, torch
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1])
seeds = [torch.Generator().manual_seed(seed) for seed in (7, 8)]
images = pipeline(sys.argv[3:], num_inference_steps=1, guidance_scale=0, generator=seeds, output_type="pt").images
assert not any(name.split(".")[0] in ("slingstone", "reward_services") for name in sys.modules)
torch.save(images, sys.argv[2])
"""


def strangers_picture(directory: Path, into: Path) -> torch.Tensor:
    subprocess.run([sys.executable, "-c", STRANGER, str(directory), str(into), *PROMPTS], check=True)
    return torch.load(into, weights_only=True)


def trained(run: Experiment) -> tuple[Path, dict[str, torch.Tensor]]:
    """Take two steps in this process and leave what a run leaves; return its directory and the trainer's pictures."""
    directory = Path(run.storage) / "align" / run.name
    RunDirectory(directory).begin(run, "nowhere", "0")
    parts = assemble(Assignment(run, str(directory), "nowhere", "0", None), 0, 1, torch.device("cpu"))
    for _ in range(2):
        parts.trainer.step()
    facts, store = Facts(parts.trainer.images, 1, "0", {}), open_store(str(directory / "checkpoints"))
    with store.part(facts.name) as part:
        files = write(parts.state.snapshot(), part)
    store.publish(facts.name, Manifest(facts, files).to_json())
    family, pictures = parts.measure.family, {}
    generator = parts.trainer.generator
    for kind, part in (("ema", parts.trainer.ema.fragments), ("raw", generator.masters())):
        parts.averaged.load_state_dict(whole(generator.module, part), strict=False)
        pictures[kind] = one_step_sampler(family, parts.averaged)(PROMPTS, [7, 8]).images
    assert (pictures["ema"] - pictures["raw"]).abs().max() > 1e-3, "the average must differ from the latest weights"
    return directory, pictures


def call(*arguments: str | Path) -> int:
    return main(["export", *map(str, arguments)])


BF16 = "runtime.precision=bf16"


@pytest.mark.parametrize(
    "overrides",
    [
        PLAIN,
        (*PLAIN, LORA, BF16),
        # The everyday runs of driver/test_shipped.py leave little to these.
        pytest.param((*PLAIN, LORA), marks=pytest.mark.slow),
        pytest.param((*PLAIN, BF16), marks=pytest.mark.slow),
    ],
    ids=["full", "lora bf16", "lora", "full bf16"],
)
def test_a_process_without_slingstone_draws_the_trainers_picture(
    micro: Callable[..., Experiment], tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    directory, pictures = trained(micro(*overrides))
    assert call(directory, tmp_path / "ema") == 0
    # The sum of products is another after merging, and float16's would be a hundred times coarser.
    found = strangers_picture(tmp_path / "ema", tmp_path / "found.pt")
    torch.testing.assert_close(found, pictures["ema"], rtol=0, atol=1e-4)
    card = (tmp_path / "ema" / "README.md").read_text()
    commit = json.loads((directory / "sources.json").read_text())["git_commit"]
    assert f"`{commit}`" in card
    assert "| images | 16 |" in card
    assert "| seed | 0 |" in card
    assert "was not evaluated" in card
    assert call(directory, tmp_path / "raw", "--weights", "raw") == 0
    raw = load_file(tmp_path / "raw" / "unet" / "diffusion_pytorch_model.safetensors")
    ema = load_file(tmp_path / "ema" / "unet" / "diffusion_pytorch_model.safetensors")
    assert raw.keys() == ema.keys()
    assert any(not torch.equal(raw[name], ema[name]) for name in raw)


def test_a_run_or_checkpoint_that_is_not_there_is_named(
    micro: Callable[..., Experiment],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(tmp_path / "nowhere", tmp_path / "out") == 1
    assert "has no config.yaml" in capsys.readouterr().err
    run = micro(*PLAIN)
    directory = Path(run.storage) / "align" / run.name
    RunDirectory(directory).begin(run, "nowhere", "0")
    assert call(directory, tmp_path / "out", "--checkpoint", "9") == 1
    assert "has no checkpoint 9; there is none" in capsys.readouterr().err


def test_an_export_writes_below_its_target_alone_and_no_name_leads_it_elsewhere(
    micro: Callable[..., Experiment],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def tree() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    directory, _ = trained(micro(*PLAIN))
    outside = shutil.copytree(next((directory / "checkpoints").iterdir()), tmp_path / "outside" / "000000000016")
    before = tree()
    assert call(directory, tmp_path / "exports" / "one") == 0
    after = tree()
    assert {path: after[path] for path in before} == before
    assert all(path.is_relative_to(tmp_path / "exports" / "one") for path in after.keys() - before.keys())

    for name in (outside, "../../../outside/000000000016", "..", "."):
        assert call(directory, tmp_path / "out", "--checkpoint", name) == 1
        assert "has no checkpoint" in capsys.readouterr().err
    config = directory / "config.yaml"
    config.write_text(config.read_text().replace("name: micro", "name: ../../outside"))
    assert call(directory, tmp_path / "out") == 1
    assert "name = '../../outside'" in capsys.readouterr().err
    assert tree().keys() == after.keys(), "nothing was written"


def test_an_export_over_an_older_one_leaves_nothing_of_it_and_other_files_are_never_replaced(
    micro: Callable[..., Experiment], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory, _ = trained(micro(*PLAIN))
    target, own = tmp_path / "exported", tmp_path / "own"
    left = target / "unet" / "diffusion_pytorch_model-00001-of-00002.safetensors"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"of a larger network")
    (target / "model_index.json").write_text("{}")
    own.mkdir()
    (own / "letter.txt").write_text("dear")
    assert call(directory, target) == 0
    assert not left.exists()
    assert (target / "unet" / "config.json").is_file()
    assert call(directory, own) == 1
    assert "holds something else than an export" in capsys.readouterr().err
    assert [path.name for path in own.iterdir()] == ["letter.txt"]


@pytest.mark.slow
def test_onnx_of_generator_and_decoder_draws_torchs_picture(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    directory = str(tiny_sdxl.write_pipeline(tmp_path / "sdxl"))
    family = load(directory, directory, generator_timestep=399, generator_input="unscaled")
    assert write_onnx(family, tmp_path / "onnx") <= TOLERANCE
    shapes = json.loads((tmp_path / "onnx" / "inputs.json").read_text())
    assert shapes["noise"] == [1, *family.latent_shape]
    assert set(shapes) == {"noise", *family.text_encoder.encode([""])}


class FakeHub:
    def __init__(self, refuses: bool = False) -> None:
        self.refuses = refuses
        self.held: dict[str, set[str]] = {}
        self.private: dict[str, bool] = {}

    def create_repo(self, repository: str, repo_type: str, private: bool, exist_ok: bool) -> str:
        if self.refuses:
            raise OSError("401 Unauthorized")
        assert (repo_type, exist_ok) == ("model", True)
        self.private.setdefault(repository, private)
        return f"https://hub.example/{repository}"

    def upload_folder(self, folder_path: str, repo_id: str, repo_type: str, commit_message: str) -> None:
        root = Path(folder_path)
        self.held[repo_id] = {str(file.relative_to(root)) for file in root.rglob("*") if file.is_file()}


def test_a_push_uploads_every_file_and_says_how_to_log_in_when_refused(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    for name in ("README.md", "unet/weights.safetensors"):
        (tmp_path / name).write_text("x")
    there = FakeHub()
    assert hub.push(tmp_path, "me/model", private=True, api=there) == "https://hub.example/me/model"
    assert there.held == {"me/model": {"README.md", "unet/weights.safetensors"}}
    assert there.private == {"me/model": True}
    with pytest.raises(ValueError, match=re.escape("push to 'me/model' failed: 401 Unauthorized; log in")):
        hub.push(tmp_path, "me/model", private=True, api=FakeHub(refuses=True))
