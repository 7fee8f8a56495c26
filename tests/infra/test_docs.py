"""docs/cluster.md names only what exists: files, make targets, variables and image tags."""

import re

from tests.infra.facts import OVERLAYS, ROOT, TAGS, overlays

PAGE = (ROOT / "docs" / "cluster.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()


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
