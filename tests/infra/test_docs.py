"""docs/cluster.md names only what exists: files, make targets, variables and image tags."""

import re
import shlex
import subprocess
import sys

import pytest

from tests.infra.facts import OVERLAYS, ROOT, TAGS, overlays

PAGE = (ROOT / "docs" / "cluster.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
FIRST_MINUTES = re.findall(r"^\| \d+ \|.*`python (jobs/[^`]*)`.*\| tried \|$", PAGE, re.MULTILINE)


def test_every_path_of_the_repository_exists():
    paths = {path.rstrip(".,") for path in re.findall(r"(?<![\w/])((?:infra|configs|tests|jobs)/[\w./-]+)", PAGE)}
    assert paths
    assert {path for path in paths if not (ROOT / path).exists()} <= {"infra/mlflow/.env"}  # which its reader makes


def test_every_make_target_and_variable_exists():
    targets = set(re.findall(r"\bmake ([a-z]+)\b", PAGE)) - {"an"}
    assert targets <= set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))
    assert set(re.findall(r"\b([A-Z]+)=", " ".join(re.findall(r"make align.*", PAGE)))) <= {"STORAGE", "ARGS"}
    assert all(re.search(rf"^{name} \?=", MAKEFILE, re.MULTILINE) for name in ("STORAGE", "ARGS"))


def test_every_overlay_is_described():
    assert set(re.findall(rf"{OVERLAYS.relative_to(ROOT)}/([\w-]+)", PAGE)) == set(overlays())


def test_images_carry_the_projects_tags():
    tagged = re.findall(r"(slingstone/\w+):([\w.]+)", PAGE)
    assert {name for name, _ in tagged} == set(TAGS)
    assert all(tag == TAGS[name] for name, tag in tagged)


@pytest.mark.parametrize("command", FIRST_MINUTES)
def test_what_is_tried_in_the_first_minutes_needs_nothing_but_the_clone(command):
    done = subprocess.run(
        [sys.executable, *shlex.split(command)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "on 64 GPUs" in done.stdout if "plan.py" in command else "# " in done.stdout


def test_the_first_minutes_hold_both_such_commands():
    assert [command.split()[0] for command in FIRST_MINUTES] == ["jobs/plan.py", "jobs/align.py"]
