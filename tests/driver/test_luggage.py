"""What is sent to a cluster: a configuration that means there what it meant here, and little else."""

import textwrap
from pathlib import Path

import pytest

from slingstone.config import Experiment, Sweep, load, load_as
from slingstone.config.paths import PACKAGES, Departure
from slingstone.driver import luggage, preflight
from slingstone.driver.luggage import pack
from slingstone.sweep import trials

ROOT = Path(__file__).resolve().parents[2]
SCENES = ROOT / "configs" / "align" / "scenes.yaml"


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A directory of the user's own, with prompts and a reward of his."""
    directory = tmp_path / "here"
    directory.mkdir()
    (directory / "own.txt").write_text("a red circle\n" * 8)
    (directory / "my_reward.py").write_text("")
    return directory


def sent(tmp_path: Path) -> Path:
    directory = tmp_path / "sent"
    directory.mkdir()
    return directory


def test_a_run_of_any_directory_travels_with_its_paths_made_absolute_on_this_machine(here: Path, tmp_path: Path):
    run = load(SCENES, ["data.prompts=own.txt", "storage=out"])
    place, tree = pack(directory := sent(tmp_path), str(SCENES), run, Departure(here))
    assert load(directory / place) == tree
    assert isinstance(tree, Experiment)
    assert (tree.data.prompts, tree.storage) == (str(here / "own.txt"), str(here / "out"))
    assert tree.models.reference == "platform/slingstone/world/scenes/reference", "it goes along with the package"


def test_to_another_machine_small_files_go_along_and_absolute_paths_stay(here: Path, tmp_path: Path):
    reward = "{name: mine, model: 'my_reward:Mine', checkpoint: x/y}"
    overrides = ["data.prompts=own.txt", "evaluation.prompts=/mnt/shared/own.txt", "storage=/mnt/shared"]
    run = load(SCENES, [*overrides, f"rewards.services=[{reward}]"])
    _, tree = pack(directory := sent(tmp_path), "run.yaml", run, Departure(here, far=True))
    assert isinstance(tree, Experiment)
    assert (tree.data.prompts, tree.evaluation.prompts) == ("own.txt", "/mnt/shared/own.txt")
    assert (directory / "own.txt").read_text() == (here / "own.txt").read_text()
    assert {path.name for path in directory.iterdir()} == {
        *("slingstone", "reward_services", "constraints.txt", "run.yaml", "own.txt", "my_reward.py")
    }


def test_what_another_machine_would_not_find_is_named_before_anything_is_sent(here: Path, tmp_path: Path):
    run = load(SCENES, ["data.prompts=../here/own.txt"])
    with pytest.raises(ValueError, match=r"storage = 'outputs': is relative; give an absolute path(.|\n)*") as said:
        pack(sent(tmp_path), "run.yaml", run, Departure(here, far=True))
    assert "data.prompts = '../here/own.txt': lies above the directory" in str(said.value)


def test_a_file_that_is_too_large_to_go_along_is_named_with_its_size(here: Path, tmp_path: Path):
    with (here / "own.txt").open("r+b") as file:
        file.truncate(luggage.LIMIT)  # sparse
    run = load(SCENES, ["data.prompts=own.txt", "storage=/mnt/shared"])
    with pytest.raises(ValueError, match=r"own.txt \(100 MiB\).*put large files where all nodes see them"):
        pack(sent(tmp_path), "run.yaml", run, Departure(here, far=True))


def test_the_sources_travel_without_data_that_lies_beside_them(here: Path, tmp_path: Path, monkeypatch):
    """A checkpoint in the clone does not matter: only the packages go."""
    pack(directory := sent(tmp_path), "run.yaml", load(SCENES), Departure(ROOT))
    assert {path.name for path in directory.iterdir()} == {
        *("slingstone", "reward_services", "constraints.txt", "run.yaml")
    }


def test_a_sweep_travels_with_the_run_that_it_varies_and_ends_in_one_that_works_anywhere(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (here / "other.txt").write_text("a blue square\n" * 8)
    (here / "run.yaml").write_text(SCENES.read_text().replace("platform/slingstone/world/scenes/prompts/train", "own"))
    (here / "sweep.yaml").write_text(
        textwrap.dedent("""
        name: mine
        run: run.yaml
        overrides: [evaluation.prompts=./other.txt]
        space:
          data.prompts: {kind: choice, values: [./own.txt, ./other.txt]}
          objective.reward_weight: {kind: choice, values: [0.1, 0.2]}
        search: {kind: grid}
        objectives: [{metric: utility}]
        signal: {metric: utility}
        """)
    )
    place, _ = pack(directory := sent(tmp_path), "sweep.yaml", load_as(Sweep, here / "sweep.yaml"), Departure(here))
    monkeypatch.chdir(directory)  # where Ray unpacks it
    prepared = trials.prepare(load_as(Sweep, place))
    prepared.begin()
    monkeypatch.chdir("/")
    recommended = preflight.prepare(prepared.recommended({"objective.reward_weight": 0.2}))
    assert recommended.data.prompts == str(here / "own.txt")
    assert recommended.evaluation.prompts == str(here / "other.txt")
    assert recommended.models.reference == str(PACKAGES / "slingstone/world/scenes/reference")


def test_what_a_sweep_recommends_names_its_files_absolutely_without_a_submission(here: Path, monkeypatch):
    (here / "run.yaml").write_text(SCENES.read_text().replace("platform/slingstone/world/scenes/prompts/train", "own"))
    monkeypatch.chdir(here)
    sweep = load_as(Sweep, ROOT / "configs" / "sweep" / "scenes.yaml", ["run=run.yaml"])
    prepared = trials.prepare(sweep.model_copy(update={"storage": str(here / "out")}))
    prepared.begin()
    monkeypatch.chdir("/")
    recommended = prepared.recommended({"objective.reward_weight": 0.2})
    assert preflight.prepare(recommended).data.prompts == str(here / "own.txt")
