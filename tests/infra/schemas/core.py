"""Make core.json, beside this file: what Kubernetes itself and the Prometheus operator accept.

    python tests/infra/schemas/core.py > core.json

needs kubernetes-validate 1.37.0 and cloudcoil-models-prometheus-operator 0.80.1.0, in an environment of their own.
"""

import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

from cloudcoil.models.prometheus_operator import v1

KUBERNETES = "v1.34.0"
KINDS = {
    "ConfigMap": "v1",
    "Deployment": "apps-v1",
    "Job": "batch-v1",
    "NetworkPolicy": "networking-v1",
    "PersistentVolumeClaim": "v1",
    "Service": "v1",
    "StatefulSet": "apps-v1",
}


def trimmed(node: Any) -> Any:
    """Return a schema without prose, its references leading into `$defs`."""
    if isinstance(node, list):
        return [trimmed(item) for item in node]
    if isinstance(node, str):
        return re.sub(r"^/api/_definitions\.json#/\$defs/", "#/$defs/", node)
    if not isinstance(node, dict):
        return node
    prose = {"description", "title", "examples"}
    return {
        key: trimmed(value)
        for key, value in node.items()
        if not (key in prose and not isinstance(value, dict)) and not key.startswith(("x-", "$schema", "$id"))
    }


def closed(node: Any) -> Any:
    """Return a schema that refuses fields which the API server would drop."""
    if isinstance(node, list):
        return [closed(item) for item in node]
    if not isinstance(node, dict):
        return node
    kept = {key: closed(value) for key, value in node.items()}
    if isinstance(node.get("properties"), dict) and "additionalProperties" not in node:
        kept["additionalProperties"] = False
    return kept


def named(node: Any) -> set[str]:
    """Return the definitions that a schema refers to."""
    return set(re.findall(r"#/\$defs/([^\"]+)", json.dumps(node)))


def main() -> None:
    """Write the kinds that infra/ uses, with the definitions that they need."""
    directory = (
        Path(str(resources.files("kubernetes_validate"))) / "kubernetes-json-schema" / f"{KUBERNETES}-local-strict"
    )
    offered = trimmed(json.loads((directory / "_definitions.json").read_text())["$defs"])
    kinds = {
        kind: trimmed(json.loads((directory / f"{kind.lower()}-{group}.json").read_text()))
        for kind, group in KINDS.items()
    }
    monitor = closed(trimmed(v1.PodMonitor.model_json_schema()))
    offered |= monitor.pop("$defs")
    kinds["PodMonitor"] = monitor
    kept: dict[str, Any] = {}
    while missing := named([kinds, kept]) - kept.keys():
        kept |= {name: offered[name] for name in missing}
    origin = (
        f"Kubernetes {KUBERNETES}, as kubernetes-validate carries it (Apache-2.0), and the Prometheus operator's"
        " PodMonitor, as cloudcoil-models-prometheus-operator does (Apache-2.0); descriptions left out: see core.py"
    )
    print(json.dumps({"source": origin, "kinds": kinds, "$defs": dict(sorted(kept.items()))}, separators=(",", ":")))


if __name__ == "__main__":
    main()
