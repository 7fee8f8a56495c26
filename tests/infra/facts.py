"""What the tests of infra/ compare: the project's own versions and configurations, read once."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.infra.kustomize import Manifest, render

ROOT = Path(__file__).resolve().parents[2]
INFRA = ROOT / "infra"
OVERLAYS = INFRA / "kuberay" / "overlays"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINNED = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if re.match(r"[\w.-]+==", line)
)
TAGS = {
    "slingstone/trainer": PROJECT["project"]["version"],
    "slingstone/reward": PROJECT["project"]["version"],
    "slingstone/mlflow": PINNED["mlflow"],
}
IN_IMAGE = Path("/opt/slingstone")
STORAGE = "/mnt/shared"


def overlay(name: str) -> dict[str, Manifest]:
    """Return what an overlay applies, by kind and name."""
    return {f"{item['kind']}/{item['metadata']['name']}": item for item in render(OVERLAYS / name)}


def overlays() -> list[str]:
    """Return the names of all overlays."""
    return sorted(path.parent.name for path in OVERLAYS.glob("*/kustomization.yaml"))


def ray_spec(items: dict[str, Manifest]) -> dict[str, Any]:
    """Return the Ray cluster that an overlay describes, whatever wraps it."""
    (spec,) = (item["spec"] for item in items.values() if item["apiVersion"] == "ray.io/v1")
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


def groups(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the groups of pods of a Ray cluster, the head's first."""
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def at_start(spec: dict[str, Any]) -> dict[str, float]:
    """Return the CPUs and GPUs that a Ray cluster has before the autoscaler adds a node; the head has none."""
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    total = {"CPU": 0.0, "GPU": 0.0}
    for group in spec["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        total["CPU"] += group["minReplicas"] * float(limits["cpu"])
        total["GPU"] += group["minReplicas"] * float(limits.get("nvidia.com/gpu", 0))
    return total


def nodes_at_start(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the nodes that a Ray cluster has before the autoscaler adds one, as `ray.nodes` would give them."""
    nodes: list[dict[str, Any]] = [{"Alive": True, "Labels": {}, "Resources": {}}]
    for group in spec["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        resources = {"CPU": float(limits["cpu"]), "GPU": float(limits.get("nvidia.com/gpu", 0))}
        nodes += [{"Alive": True, "Labels": group["labels"], "Resources": resources}] * group["minReplicas"]
    return nodes


def entrypoint(command: str) -> tuple[Path, list[str], list[str]]:
    """Split `cd DIRECTORY && python JOB CONFIG [path=value ...]` into directory, [job, config] and overrides."""
    change, directory, then, python, job, config, *overrides = shlex.split(command)
    assert (change, then, python) == ("cd", "&&", "python")
    return Path(directory), [job, config], overrides


def strings(node: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield every string of a tree with its path."""
    if isinstance(node, str):
        yield path, node
    for key, child in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from strings(child, f"{path}.{key}")
