"""What holds for all of infra/: nothing dangling, no secret in clear, no address of one site."""

import importlib.util
import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from tests.infra.facts import INFRA, ROOT, STORAGE, TAGS, strings
from tests.infra.kustomize import documents

YAML_FILES = sorted(INFRA.rglob("*.yaml"))
TEXT_FILES = sorted(path for path in INFRA.rglob("*") if path.is_file())
SECRET = re.compile(r"(password|secret|token|credential|access[-_]?key|private[-_]?key)", re.IGNORECASE)
REFERENCE = re.compile(r"\$\{\w+(:\?[^}]*)?\}|\$\(\w+\)|\$\$\w+|\$\w+")


def by_name(path: Path) -> str:
    return str(path.relative_to(INFRA))


@pytest.mark.parametrize("path", YAML_FILES, ids=by_name)
def test_every_file_is_yaml_with_no_key_given_twice(path):
    def unique(loader, node):
        keys = [loader.construct_object(key) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        assert len(keys) == len(set(map(str, keys))), f"{path}: {keys}"
        return yaml.SafeLoader.construct_yaml_map(loader, node)

    loader = type("Unique", (yaml.SafeLoader,), {})
    loader.add_constructor("tag:yaml.org,2002:map", unique)
    assert all(document is not None for document in yaml.load_all(path.read_text(), loader))


@pytest.mark.parametrize("path", sorted(INFRA.rglob("kustomization.yaml")), ids=by_name)
def test_a_kustomization_names_the_files_beside_it_all_and_no_others(path):
    (given,) = documents(path)
    named = [(path.parent / name).resolve() for name in [*given.get("resources", []), *given.get("components", [])]]
    assert all(target.exists() for target in named)
    beside = {file.resolve() for file in path.parent.glob("*.yaml")} - {path.resolve()}
    assert beside == {target for target in named if target.is_file()}


@pytest.mark.parametrize("path", YAML_FILES, ids=by_name)
def test_secrets_are_references(path):
    for document in documents(path):
        assert document.get("kind") != "Secret", "a Secret belongs to the cluster, not to the repository"
        for where, text in strings(document):
            name = where.rsplit(".", 1)[-1]
            entry = re.fullmatch(r"(.*)\.value", where)
            assert not (SECRET.search(name) and where.count("environment") and not REFERENCE.fullmatch(text)), where
            assert not (re.search(r"://[^/\s:]+:[^@\s]+@", text) and not REFERENCE.search(text)), f"{where}: {text}"
            if entry:
                owner = next(value for key, value in strings(document) if key == f"{entry[1]}.name")
                assert not SECRET.search(owner), f"{where} gives {owner} in clear"


def test_a_password_in_clear_would_be_found(tmp_path):
    leak = tmp_path / "leak.yaml"
    leak.write_text("kind: Pod\nenv:\n  - {name: POSTGRES_PASSWORD, value: hunter2}\n")
    with pytest.raises(AssertionError, match="in clear"):
        test_secrets_are_references(leak)
    leak.write_text("uri: postgresql://mlflow:hunter2@postgres/mlflow\n")
    with pytest.raises(AssertionError, match="hunter2"):
        test_secrets_are_references(leak)


@pytest.mark.parametrize("path", TEXT_FILES, ids=by_name)
def test_images_of_the_project_carry_the_projects_versions(path):
    for name, tag in re.findall(r"(slingstone/(?:trainer|reward|mlflow)):([\w.]+)", path.read_text()):
        assert tag == TAGS[name], f"{name}:{tag}"


@pytest.mark.parametrize("path", TEXT_FILES, ids=by_name)
def test_no_image_floats(path):
    assert ":latest" not in path.read_text()


def test_ray_up_accepts_the_launchers_file():
    """Against the schema that `ray up` itself checks with; found without importing Ray."""
    spec = importlib.util.find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    schema = json.loads((Path(spec.origin).parent / "autoscaler" / "ray-schema.json").read_text())
    (launcher,) = documents(INFRA / "ray-cluster.yaml")
    jsonschema.Draft7Validator(schema).validate(launcher)
    types = launcher["available_node_types"]
    assert launcher["head_node_type"] in types
    labels = {name: node.get("labels") for name, node in types.items() if name != launcher["head_node_type"]}
    assert labels == {name: {"slingstone/group": name} for name in labels}, (
        "what placements name, as in KubeRay's groups"
    )
    assert sum(node.get("max_workers", 0) for node in types.values()) <= launcher["max_workers"]
    assert any(option == f"--volume {STORAGE}:{STORAGE}" for option in launcher["docker"]["run_options"])


def test_nothing_of_infra_travels_with_a_job():
    assert "/infra/" in (ROOT / ".rayignore").read_text().splitlines()
