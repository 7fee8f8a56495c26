"""From a YAML file and dotted overrides to an Experiment, or to one message that names every mistake."""

import difflib
from collections.abc import Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from reward_services.unicode import HALF_PAIR
from slingstone.config.experiment import Experiment
from slingstone.config.job import TrainingJob
from slingstone.config.tree import Section

Tree = TypeVar("Tree", bound=Section)


class ConfigError(ValueError):
    """Every mistake of a run's configuration, one a line: dotted path, value, remedy."""


def load(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Return the run that a YAML file and `a.b=c` overrides describe.

    Args:
        path: YAML file; a mapping of the sections of `Experiment`.
        overrides: `dotted.path=value`; the value is read as YAML, a list's element is named by its `name` or index.

    Raises:
        ConfigError: naming every mistake at once.
    """
    return load_as(Experiment, path, overrides)


def load_as(kind: type[Tree], path: str | Path, overrides: Sequence[str] = ()) -> Tree:
    """Return the tree of another kind that a YAML file describes, such as a sweep; see `load`."""
    tree = _read(Path(path))
    mistakes = [message for text in overrides if (message := _override(tree, text))]
    try:
        loaded = kind.model_validate(tree)
        if not mistakes:
            return loaded
    except ValidationError as error:
        mistakes += [line for detail in error.errors() for line in _describe(detail, tree, kind)]
    count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
    raise ConfigError("\n".join([f"{path}: {count}", *(f"  {line}" for line in mistakes)]))


def kind_of(path: str | Path) -> Any:
    """Return the `kind` that a YAML file names at its root; None if it names none."""
    return _read(Path(path)).get("kind")


def flatten(experiment: Section | TrainingJob) -> dict[str, str]:
    """Return the run as dotted paths and YAML values: MLflow's params, and overrides that `load` takes back."""
    return dict(_leaves(experiment.model_dump(mode="json"), ""))


def to_yaml(experiment: Section | TrainingJob) -> str:
    """Return the resolved run as a YAML file that `load` reads back to an equal one."""
    return yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


class _UniqueKeys(yaml.SafeLoader):
    """YAML, but a key given twice is a mistake rather than the last one winning, and a text is Unicode."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key, (key_node, _) in zip(keys, node.value, strict=True):
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: Any) -> Any:
        text = super().construct_scalar(node)
        if isinstance(text, str) and HALF_PAIR.search(text):
            raise yaml.constructor.ConstructorError(None, None, "half of a surrogate pair is no text", node.start_mark)
        return text


def _parse(text: str) -> Any:
    return yaml.load(text, Loader=_UniqueKeys)


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = _parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        remedy = "give the path of a run's YAML, such as configs/align/scenes.yaml"
        raise ConfigError(f"{path}: no such file; {remedy}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    except (yaml.YAMLError, TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        found = type(tree).__name__
        raise ConfigError(f"{path}: holds {found}, expected a mapping of sections such as models, training")
    return tree


def _override(tree: dict[str, Any], text: str) -> str | None:
    """Set one value in place; return what is wrong with the override, if anything."""
    path, equals, value = text.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        return f"override {text!r}: write it as dotted.path=value"
    try:
        parsed = _parse(value)
    except (yaml.YAMLError, TypeError, ValueError, RecursionError):
        return f"override {text!r}: the value is not valid YAML; quote it"
    node: Any = tree
    for depth, key in enumerate(keys, start=1):
        above = ".".join(keys[: depth - 1])
        if not isinstance(node, dict | list):
            return f"override {text!r}: {above} is a value, not a section"
        place: Any = _index(node, key) if isinstance(node, list) else key
        if place is None:
            names = ", ".join(str(item.get("name")) for item in node if isinstance(item, dict)) or "it is empty"
            return f"override {text!r}: {above} has no element {key!r}; it has: {names}"
        if depth == len(keys):
            node[place] = parsed
        else:
            inner = node.get(key) if isinstance(node, dict) else node[place]
            # A copy: by YAML's anchors other keys may share it.
            node[place] = {} if inner is None else copy(inner)
            node = node[place]
    return None


def _index(items: list[Any], key: str) -> int | None:
    """Find a list's element by its `name`, else by its position."""
    names = [item.get("name") if isinstance(item, dict) else None for item in items]
    if key in names:
        return names.index(key)
    return int(key) if key.isdecimal() and int(key) < len(items) else None


def _describe(detail: ErrorDetails, tree: Any, kind: type[BaseModel]) -> Iterator[str]:
    """Turn one of pydantic's errors into lines in our words."""
    if detail["type"] == "contradictions":
        for path, value, message in detail.get("ctx", {})["found"]:
            yield f"{path} = {value!r}: {message}"
        return
    keys, model = _walk(detail["loc"], tree, kind)
    path = ".".join(str(key) for key in keys)
    if detail["type"] == "extra_forbidden":
        close = difflib.get_close_matches(str(keys[-1]), model.model_fields if model else [], n=1)
        known = ", ".join(model.model_fields) if model else ""
        remedy = f"did you mean {close[0]}?" if close else f"known here: {known}"
        yield f"{path}: unknown key; {remedy}"
    elif detail["type"] == "missing":
        yield f"{path}: is missing; add it"
    elif detail["type"].startswith("union_tag"):
        kinds = str(detail.get("ctx", {}).get("expected_tags", "")).replace("'", "")
        given = detail["input"].get("kind") if isinstance(detail["input"], dict) else detail["input"]
        yield f"{path}.kind = {given!r}: choose one of {kinds}" if kinds else f"{path}.kind: is missing; add it"
    else:
        yield f"{path} = {detail['input']!r}: {detail['msg'][:1].lower()}{detail['msg'][1:]}"


def _walk(
    location: Sequence[str | int], tree: Any, kind: type[BaseModel]
) -> tuple[list[str | int], type[BaseModel] | None]:
    """Return the location without union tags, list elements by name, and the section that owns its last key."""
    keys: list[str | int] = []
    annotation: Any = kind
    owner: type[BaseModel] | None = kind
    node = tree
    for step in location:
        models = _models(annotation)
        if isinstance(node, dict) and len(models) > 1 and node.get("kind") == step:
            annotation = next(model for model in models if step in get_args(model.model_fields["kind"].annotation))
            continue
        owner = models[0] if models else None
        if isinstance(step, int):
            node = node[step] if isinstance(node, list | tuple) and step < len(node) else None
            name = node.get("name") if isinstance(node, dict) else None
            keys.append(name if isinstance(name, str) else step)
            continue
        keys.append(step)
        if get_origin(annotation) is dict:
            annotation = get_args(annotation)[1]
        else:
            annotation = owner.model_fields[step].annotation if owner and step in owner.model_fields else None
        node = node.get(step) if isinstance(node, dict) else None
    return keys, owner


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Return the sections that an annotation may hold, in or out of a union or a tuple."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def _leaves(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, child in value.items():
            yield from _leaves(child, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        for index, child in enumerate(value):
            yield from _leaves(child, f"{path}.{child.get('name', index)}")
    else:
        yield path, yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()
