"""What a run says to do next: commands that the command line takes as they are."""

import shlex
from pathlib import Path

from slingstone import cli
from slingstone.config import Arena, Comparison, load_as
from slingstone.driver.launch import next_steps

ROOT = Path(__file__).resolve().parents[2]


def test_every_next_step_can_be_pasted(tmp_path: Path):
    run = tmp_path / "a run"
    _, *lines = next_steps(run, "sqlite:////x y/mlflow.db", in_world=True)
    steps = {name: words for name, *words in map(shlex.split, lines)}
    assert list(steps) == ["look", "try", "compare", "export", "sweep"]
    assert steps["look"][-1] == "sqlite:////x y/mlflow.db"
    for name in ("try", "compare", "export", "sweep"):
        cli._parser().parse_args(steps[name][1:])
    arena = load_as(Arena, ROOT / steps["try"][2], steps["try"][3:])
    comparison = load_as(Comparison, ROOT / steps["compare"][2], steps["compare"][3:])
    assert str(run) in str(arena.generators)
    assert str(run) in str(comparison.models)


def test_of_a_run_outside_the_embedded_world_the_worlds_configurations_are_not_offered():
    assert [line.split()[0] for line in next_steps(Path("/r"), "http://h", in_world=False)] == [
        "next",
        "look",
        "export",
    ]
