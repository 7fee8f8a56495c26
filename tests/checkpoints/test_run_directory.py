"""Whether a run may continue what lies under its name."""

import pytest

from slingstone.checkpoints.run_directory import RunDirectory, refuse_other
from slingstone.config import load
from slingstone.config.paths import ROOT

FILE = "platform/slingstone/world/scenes/prompts/train.txt"
PLACES = [
    f"/tmp/ray/session_1/runtime_resources/working_dir_files/_ray_pkg_0d0b/{FILE}",
    f"/tmp/ray/session_2/runtime_resources/working_dir_files/_ray_pkg_ea1b/{FILE}",
    f"{ROOT}/{FILE}",
]


@pytest.mark.parametrize("before", PLACES)
@pytest.mark.parametrize("now", PLACES)
def test_sources_that_another_cluster_unpacked_elsewhere_are_the_same(before, now):
    refuse_other("here", {"data.prompts": before}, {"data.prompts": now})


def test_another_file_of_the_sources_is_another():
    with pytest.raises(ValueError, match=r"differs in data\.prompts"):
        refuse_other("here", {"data.prompts": PLACES[0]}, {"data.prompts": PLACES[1].replace("train", "heldout")})


@pytest.mark.parametrize("text", ["", '{"images": 3', "[" * 5])
def test_files_of_a_run_that_are_cut_short_are_made_again_and_never_a_parsers_traceback(tmp_path, text):
    run = RunDirectory(tmp_path)
    for name in ("summary.json", "mlflow.json"):
        (tmp_path / name).write_text(text)
    assert run.summary is None
    assert not run.complete(load(ROOT / "configs" / "align" / "scenes.yaml"))
    assert run.mlflow_run("sqlite:///here.db") is None
