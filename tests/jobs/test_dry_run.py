"""Every shipped run can be tried without loading anything."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from slingstone.cli import main
from tests import tiny

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ("sd15", "pixart", "sdxl")


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/align/*.yaml")), ids=lambda path: path.stem)
def test_a_dry_run_of_every_shipped_run_prints_it_and_the_memory_by_part(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tiny.write_prompts(tmp_path / "prompts.txt")
    overrides = [f"data.prompts={prompts}", f"evaluation.prompts={prompts}"]
    if path.stem not in PUBLISHED:
        directory = tiny.write_pipeline(tmp_path / "pipeline")
        overrides += [f"models.reference={directory}", f"models.generator={directory}"]
        names = [entry["name"] for entry in yaml.safe_load(path.read_text())["rewards"].get("services", [])]
        overrides += [f"rewards.services.{name}.checkpoint={directory}" for name in names]
    assert main(["align", str(path), "--dry-run", *overrides]) == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["name"] == path.stem
    for part in (
        "weights: reference",
        "optimizer states",
        "average (EMA)",
        "activations",
        "backward pass",
        "at its most",
    ):
        assert f"#   {part}" in printed


def test_a_published_run_is_tried_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from slingstone.config import load; from slingstone.plan import report; "
        "text = report.dry_run(load('configs/align/sdxl.yaml')); assert 'published sizes' in text, text; "
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
