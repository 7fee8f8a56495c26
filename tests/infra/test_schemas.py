"""What is applied to a Kubernetes cluster is what its API server, KubeRay and Prometheus' operator accept."""

import copy
import json
from pathlib import Path

import jsonschema
import pytest

from tests.infra.facts import INFRA, OVERLAYS, overlays
from tests.infra.kustomize import Manifest, render

APPLIED = [*(OVERLAYS / name for name in overlays()), INFRA / "mlflow" / "kubernetes"]
READ = [json.loads((Path(__file__).parent / "schemas" / f"{name}.json").read_text()) for name in ("kuberay", "core")]
VALIDATORS = {
    kind: jsonschema.Draft202012Validator({**schema, "$defs": schemas["$defs"]})
    for schemas in READ
    for kind, schema in schemas["kinds"].items()
}


def mistakes(manifest: Manifest) -> list[str]:
    found = VALIDATORS[manifest["kind"]].iter_errors(manifest)
    return [f"{error.json_path}: {error.message[:200]}" for error in found]


@pytest.mark.parametrize("path", APPLIED, ids=lambda path: str(path.relative_to(INFRA)))
def test_every_manifest_is_accepted_with_every_field(path):
    manifests = render(path)
    assert len(manifests) > 5
    found = {f"{item['kind']}/{item['metadata']['name']}": mistakes(item) for item in manifests}
    assert not any(found.values()), found


def test_every_kind_is_read_closely_enough_to_find_a_misspelt_field():
    """A field that no schema knows would be dropped by the API server without a word."""
    seen = {item["kind"]: item for path in APPLIED for item in render(path)}
    assert seen.keys() == VALIDATORS.keys()
    for kind, manifest in seen.items():
        place = "spec" if "spec" in manifest else "metadata"
        assert any(
            "mispelt" in mistake for mistake in mistakes(manifest | {place: manifest[place] | {"mispelt": 1}})
        ), kind


@pytest.mark.parametrize("kind", ["Deployment", "RayCluster"])
def test_a_misspelt_field_deep_in_a_pod_is_found(kind):
    (manifest, *_) = (copy.deepcopy(item) for path in APPLIED for item in render(path) if item["kind"] == kind)
    spec = manifest["spec"]
    pod = (spec if kind == "Deployment" else spec["workerGroupSpecs"][0])["template"]["spec"]
    assert not mistakes(manifest)
    pod["toleration"] = []
    pod["containers"][0]["imagePullPolice"] = "Never"
    deep, shallow = sorted(mistakes(manifest))
    assert "imagePullPolice" in deep
    assert "toleration" in shallow
