"""Make kuberay.json, beside this file: python tests/infra/schemas/kuberay.py DIRECTORY_OF_ITS_CRDS > kuberay.json."""

import hashlib
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

KINDS = {"RayCluster": "rayclusters", "RayJob": "rayjobs", "RayService": "rayservices"}
SHARED_FROM_CHARS = 400


def trimmed(node: Any) -> Any:
    """Return a schema without prose, closed against fields that the API server would drop."""
    if isinstance(node, list):
        return [trimmed(item) for item in node]
    if not isinstance(node, dict):
        return node
    kept = {
        key: trimmed(value)
        for key, value in node.items()
        if not (key == "description" and isinstance(value, str)) and not key.startswith("x-")
    }
    open_ended = "additionalProperties" in node or node.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(node.get("properties"), dict) and node.get("type") == "object" and not open_ended:
        kept["additionalProperties"] = False
    return kept


def shared(schemas: dict[str, Any]) -> dict[str, Any]:
    """Return the schemas with every part that stands in several places, such as a pod's, kept once."""

    def text(node: Any) -> str:
        return json.dumps(node, sort_keys=True, separators=(",", ":"))

    seen: Counter[str] = Counter()

    def count(node: Any) -> None:
        if isinstance(node, dict) and "type" in node and len(text(node)) > SHARED_FROM_CHARS:
            seen[text(node)] += 1
            if seen[text(node)] > 1:
                return
        for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            count(child)

    def replaced(node: Any, top: bool = False) -> Any:
        if isinstance(node, dict) and not top and seen.get(text(node), 0) > 1:
            name = hashlib.sha256(text(node).encode()).hexdigest()[:8]
            if name not in definitions:
                definitions[name] = replaced(node, top=True)
            return {"$ref": f"#/$defs/{name}"}
        if isinstance(node, dict):
            return {key: replaced(value) for key, value in node.items()}
        return [replaced(item) for item in node] if isinstance(node, list) else node

    count(schemas)
    definitions: dict[str, Any] = {}
    return {"kinds": {kind: replaced(schema, top=True) for kind, schema in schemas.items()}, "$defs": definitions}


def main() -> None:
    """Write the served version v1 of the three kinds."""
    schemas = {}
    for kind, plural in KINDS.items():
        crd = yaml.load((Path(sys.argv[1]) / f"ray.io_{plural}.yaml").read_text(), yaml.CSafeLoader)
        (version,) = (version for version in crd["spec"]["versions"] if version["name"] == "v1")
        schemas[kind] = trimmed(version["schema"]["openAPIV3Schema"])
    origin = (
        "KubeRay v1.7.0, ray-operator/config/crd/bases, https://github.com/ray-project/kuberay, Apache-2.0;"
        " descriptions left out, repeated parts shared, objects closed: see kuberay.py"
    )
    print(json.dumps({"source": origin, **shared(schemas)}, separators=(",", ":")))


if __name__ == "__main__":
    main()
