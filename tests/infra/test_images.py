"""The Dockerfiles: pinned by constraints.txt, without root, and holding what their nodes import."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.infra.facts import IN_IMAGE, INFRA, PINNED, PROJECT, ROOT

DOCKERFILES = sorted((INFRA / "docker").glob("*.Dockerfile"))
BY_MODULE = {"grpc": "grpcio", "huggingface_hub": "huggingface_hub", "yaml": "pyyaml", "PIL": "pillow"}


def instructions(path: Path) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile, continuation lines joined, comments left out."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line.strip())]


def given(path: Path, word: str) -> list[str]:
    return [rest for found, rest in instructions(path) if found == word]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_python_is_the_one_that_constraints_were_tried_with(path):
    assert given(path, "FROM") == [f"python:{PROJECT['tool']['pyright']['pythonVersion']}-slim-bookworm"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_hadolint_finds_nothing(path):
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([str(hadolint), "--no-color", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_hadolint_would_find_what_is_unpinned(tmp_path):
    (tmp_path / "Dockerfile").write_text("FROM python:latest\nRUN pip install torch\n")
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([str(hadolint), str(tmp_path / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode != 0
    assert {"DL3007", "DL3013"} <= set(re.findall(r"DL\d+", done.stdout))


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_every_installation_is_constrained_and_leaves_no_cache(path):
    installs = [run for run in given(path, "RUN") if "pip install" in run]
    assert len(installs) == 1
    assert "--constraint constraints.txt" in installs[0]
    assert "--no-cache-dir" in installs[0]
    assert any("constraints.txt" in copied for copied in given(path, "COPY"))


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_it_runs_as_the_numbered_user_that_pods_ask_for_and_says_whether_it_is_well(path):
    last = max(index for index, (word, _) in enumerate(instructions(path)) if word == "RUN")
    assert ("USER", "1000") in instructions(path)[last:]
    assert any("--uid 1000" in run for run in given(path, "RUN"))
    assert len(given(path, "HEALTHCHECK")) == 1


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_what_it_copies_is_in_the_repository_and_in_the_context(path):
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    admitted = {line[1:].rstrip("/") for line in ignored if line.startswith("!")}
    assert "*" in ignored
    for copied in given(path, "COPY"):
        *sources, _ = copied.split()
        for source in sources:
            assert (ROOT / source).exists(), source
            assert source.split("/")[0] in admitted, source


@pytest.mark.parametrize("name", ["trainer", "reward"])
def test_the_code_lies_where_the_manifests_call_it(name):
    path = INFRA / "docker" / f"{name}.Dockerfile"
    assert given(path, "WORKDIR") == [str(IN_IMAGE)]
    copied = {target.rstrip("/") for *_, target in (line.split() for line in given(path, "COPY"))}
    assert "reward_services" in copied
    if name == "trainer":
        assert {"jobs", "configs", "platform"} <= copied


def test_served_checkpoints_are_in_the_reward_image():
    copied = given(INFRA / "docker" / "reward.Dockerfile", "COPY")
    served = yaml.safe_load((ROOT / "configs/serve/rewards.yaml").read_text())["applications"]
    for application in served:
        checkpoint = application["args"]["checkpoint"]
        assert any(checkpoint.startswith(line.split()[-1]) for line in copied), checkpoint


def test_the_reward_image_installs_what_reward_services_imports_and_no_more():
    imported = set()
    for file in (ROOT / "reward_services").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                imported.add(node.module)
            elif isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
    modules = {name.split(".")[0] for name in imported} - set(sys.stdlib_module_names) - {"reward_services"}
    (install,) = (run for run in given(INFRA / "docker" / "reward.Dockerfile", "RUN") if "pip install" in run)
    packages = {word.strip('"').split("[")[0] for word in install.partition("constraints.txt")[2].split()}
    assert packages == {BY_MODULE.get(module, module) for module in modules}
    assert packages <= {name.lower() for name in PINNED}


def test_the_trainers_torch_is_refused_if_it_is_the_cpu_build():
    (install,) = (run for run in given(INFRA / "docker" / "trainer.Dockerfile", "RUN") if "pip install" in run)
    assert "torch.version.cuda" in install
