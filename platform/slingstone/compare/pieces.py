"""What an evaluation will do, checked before anything is held, in pieces that can be done in any order."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slingstone.config import Comparison, load, paths
from slingstone.config.comparison import AlignedRun, OneStep, PromptFile
from slingstone.driver import preflight
from slingstone.prompts.files import PromptSet, read_prompt_set

BATCHES = 4
"""Batches of a piece: what a crash loses."""


@dataclass(frozen=True)
class Piece:
    """A part of one model's pictures of one set of prompts.

    Attributes:
        model: position among the models.
        prompts: position among the sets of prompts.
        number: which part.
        total: number of parts.
        path: where its numbers go; what else belongs to it lies beside.
    """

    model: int
    prompts: int
    number: int
    total: int
    path: str

    @property
    def done(self) -> bool:
        """Whether it was evaluated before."""
        return Path(self.path).is_file()


@dataclass(frozen=True)
class Plan:
    """An evaluation with absolute paths."""

    settings: Comparison

    @property
    def directory(self) -> Path:
        """Where the results lie."""
        return Path(self.settings.storage) / "evaluate" / self.settings.name

    def prompt_set(self, entry: PromptFile) -> PromptSet:
        """Return the prompts of a set with their groups."""
        found = read_prompt_set(entry.path, entry.column, entry.groups)
        prompts = found.prompts[: entry.num_prompts]
        return PromptSet(prompts, {prompt: found.groups[prompt] for prompt in prompts})

    def pieces(self) -> list[Piece]:
        """Return all pieces, model after model: the same whatever the number of workers."""
        return [piece for model in range(len(self.settings.models)) for piece in self._pieces(model)]

    def kept(self, model: int) -> Path:
        """Return the folder of all that is known of a model; another one when its files or settings change."""
        settings, entry = self.settings, self.settings.models[model]
        facts = {
            "model": entry.model_dump(mode="json"),
            "files": [_state(Path(path)) for path in _files(entry)],
            "rewards": [service.spec.model_dump(mode="json") for service in settings.rewards.services],
            "reward_files": [_state(Path(service.checkpoint)) for service in settings.rewards.services],
            "features": settings.features and settings.features.model_dump(mode="json"),
            "sampling": [settings.images_per_prompt, settings.batch_size, settings.seed],
            "measures": [settings.oracle, settings.diversity],
        }
        return self.directory / "pieces" / f"{entry.name}-{digest(facts)}"

    def _pieces(self, model: int) -> Iterator[Piece]:
        settings, kept = self.settings, self.kept(model)
        size = max(1, settings.batch_size // settings.images_per_prompt) * BATCHES
        for place, entry in enumerate(settings.prompts):
            prompts = self.prompt_set(entry).prompts
            total = -(-len(prompts) // size)
            folder = kept / f"{entry.name}-{digest(prompts)}"
            for number in range(total):
                yield Piece(model, place, number, total, str(folder / f"{number:04}.json"))


def prepare(settings: Comparison) -> Plan:
    """Return the plan with absolute paths.

    Raises:
        ValueError: naming every file that is missing or is not what it should be.
    """
    plan = Plan(paths.resolved(settings))
    if mistakes := list(_mistakes(plan)):
        raise ValueError("\n".join(mistakes))
    return plan


def aligned_models(directory: str) -> Any:
    """Return the models section of a run, its generator replaced by what the run exported."""
    models = paths.resolved(load(Path(directory) / "config.yaml").models)
    return models.model_copy(update={"generator": str(Path(directory) / "pipeline"), "assistant": None})


def _files(entry: Any) -> Iterator[str]:
    if isinstance(entry, AlignedRun):
        yield from (str(Path(entry.run) / "pipeline"), aligned_models(entry.run).reference)
    elif isinstance(entry, OneStep):
        yield from (entry.models.reference, entry.models.generator)
    else:
        yield entry.location
        if entry.weights is not None:
            yield entry.weights


def _mistakes(plan: Plan) -> Iterator[str]:
    settings = plan.settings
    for entry in settings.models:
        field = f"models.{entry.name}"
        if isinstance(entry, AlignedRun) and not (Path(entry.run) / "pipeline" / "model_index.json").is_file():
            yield f"{field}.run = {entry.run!r}: holds no exported pipeline; finish the run, or give another directory"
            continue
        for path in _files(entry):
            yield from preflight.absent(field, path)
    for entry in settings.prompts:
        try:
            plan.prompt_set(entry)
        except ValueError as error:
            yield f"prompts.{entry.name}: {error}"
    yield from preflight.absent_rewards(settings.rewards)
    if settings.features is not None:
        yield from preflight.absent("features.checkpoint", settings.features.checkpoint)
        if not Path(settings.features.images).is_dir():
            yield f"features.images = {settings.features.images!r}: is no folder; give one of .png or .jpg pictures"


def digest(facts: Any) -> str:
    """Return a short name for plain values, the same for the same values."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:10]


def _state(path: Path) -> list[tuple[str, int, int]]:
    """Return what changes when the files at a place do; nothing for a hub id."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path] * path.is_file()
    return [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
