"""Renders the kustomizations of infra/ without kustomize: the fields that they use, and an error for any other."""

import copy
from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]
LOCAL = "config.kubernetes.io/local-config"
FIELDS = {"apiVersion", "kind", "resources", "components", "patches", "images", "replacements"}


def render(directory: Path) -> list[Manifest]:
    """Return what `kubectl kustomize DIRECTORY` prints, in the order of the files."""
    rendered = _accumulated(directory, [])
    return [item for item in rendered if item["metadata"].get("annotations", {}).get(LOCAL) != "true"]


def documents(path: Path) -> list[Any]:
    """Return the YAML documents of a file."""
    return list(yaml.safe_load_all(path.read_text()))


def _accumulated(directory: Path, items: list[Manifest]) -> list[Manifest]:
    (given,) = documents(directory / "kustomization.yaml")
    if unknown := set(given) - FIELDS:
        raise ValueError(
            f"{directory}: kustomization uses {sorted(unknown)}, which tests/infra/kustomize.py cannot render"
        )
    items = list(items)
    for name in given.get("resources", []):
        path = (directory / name).resolve(strict=True)
        items += _accumulated(path, []) if path.is_dir() else copy.deepcopy(documents(path))
    for name in given.get("components", []):
        items = _accumulated((directory / name).resolve(strict=True), items)
    for patch in given.get("patches", []):
        for item in _selected(items, patch["target"]):
            for operation in yaml.safe_load(patch["patch"]):
                _apply(item, operation)
    for image in given.get("images", []):
        for item in items:
            _tag(item, image["name"], image["newTag"])
    for replacement in given.get("replacements", []):
        (source,) = _selected(items, replacement["source"])
        for target in replacement["targets"]:
            for item in _selected(items, target["select"]):
                for path in target["fieldPaths"]:
                    *parents, last = path.split(".")
                    _reached(item, parents)[last] = copy.deepcopy(source[replacement["source"]["fieldPath"]])
    return items


def _selected(items: list[Manifest], target: dict[str, str]) -> list[Manifest]:
    found = [
        item
        for item in items
        if item["kind"] == target["kind"] and target.get("name", item["metadata"]["name"]) == item["metadata"]["name"]
    ]
    if not found:
        raise ValueError(f"a kustomization selects {target}, which is nothing")
    return found


def _reached(node: Any, keys: list[str]) -> Any:
    for key in keys:
        node = node[int(key)] if isinstance(node, list) else node[key]
    return node


def _apply(item: Manifest, operation: dict[str, Any]) -> None:
    """Apply an operation of RFC 6902; `add` to mappings only."""
    *parents, last = (key.replace("~1", "/").replace("~0", "~") for key in operation["path"].strip("/").split("/"))
    parent = _reached(item, parents)
    place = int(last) if isinstance(parent, list) else last
    match operation["op"]:
        case "add" if isinstance(parent, dict):
            parent[place] = operation["value"]
        case "replace":
            assert parent[place] is not None
            parent[place] = operation["value"]
        case "remove":
            del parent[place]
        case "test":
            assert parent[place] == operation["value"], f"{operation['path']} is {parent[place]!r}"
        case other:
            raise ValueError(f"patch operation {other!r} cannot be rendered by tests/infra/kustomize.py")


def _tag(node: Any, name: str, tag: str) -> None:
    if isinstance(node, dict):
        for container in [*node.get("containers", []), *node.get("initContainers", [])]:
            if container["image"].partition(":")[0] == name:
                container["image"] = f"{name}:{tag}"
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        _tag(child, name, tag)
