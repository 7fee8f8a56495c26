"""What a comparison will do, checked before anything is held, in shards that can be evaluated in any order."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from reward_services.identity import identity
from slingstone.compare.contents import by_content, digest
from slingstone.config import Comparison, Models, load, paths
from slingstone.config.comparison import AlignedRun, Model, OneStep, PromptFile, Stock
from slingstone.driver import preflight
from slingstone.prompts.files import read_grouped_prompts
from slingstone.prompts.hub import local_copy

BATCHES = 4
"""Batches of a shard: what a crash loses."""
LOADED = {"reference", "generator", "generator_timestep", "generator_input", "generator_noise_level", "decode_chunk"}
"""Fields of a models section that matter to pictures in one step."""


@dataclass(frozen=True)
class Shard:
    """A part of one model's pictures of one set of prompts.

    Attributes:
        model: name of the model.
        prompts: name of the set.
        number: which part.
        total: number of parts.
        path: of the file with its numbers; its features lie beside.
    """

    model: str
    prompts: str
    number: int
    total: int
    path: Path

    @property
    def features(self) -> Path:
        """The file with the features of its pictures."""
        return self.path.with_suffix(".pt")

    @property
    def done(self) -> bool:
        """Whether it was evaluated before."""
        return self.path.is_file()


def shards_of(comparison: Comparison) -> list[Shard]:
    """Return all shards, model after model: the same whatever the number of workers."""
    size = max(1, comparison.batch_size // comparison.images_per_prompt) * BATCHES
    sets = {entry.name: list(grouped_prompts(entry)) for entry in comparison.prompts}
    shards = []
    for model in comparison.models:
        kept = model_directory(comparison, model)
        for name, prompts in sets.items():
            folder, total = kept / f"{name}-{digest(prompts)}", -(-len(prompts) // size)
            shards += [Shard(model.name, name, i, total, folder / f"{i:04}.json") for i in range(total)]
    return shards


def grouped_prompts(entry: PromptFile) -> dict[str, dict[str, tuple[str, ...]]]:
    """Return the prompts of a set with their groups."""
    return dict(islice(read_grouped_prompts(entry.path, entry.column, entry.groups).items(), entry.num_prompts))


def directory(comparison: Comparison) -> Path:
    """Return where the results lie."""
    return Path(comparison.storage) / "evaluate" / comparison.name


def model_directory(comparison: Comparison, model: Model) -> Path:
    """Return the folder of all that is known of a model; another one when the bytes or settings behind it change."""
    facts = {
        "model": contents_of(model),
        "rewards": [
            [entry.name, identity(entry), entry.device, entry.self_test_score] for entry in comparison.rewards.services
        ],
        "features": by_content(comparison.features and comparison.features.model_dump(mode="json")),
        "sampling": [comparison.images_per_prompt, comparison.batch_size, comparison.seed],
        "measures": [comparison.oracle, comparison.diversity],
    }
    return directory(comparison) / "shards" / f"{model.name}-{digest(facts)}"


def contents_of(model: Model) -> Any:
    """Return what decides a model's pictures beside prompts and seeds, as plain values, files by their digests."""
    if isinstance(model, Stock):
        return by_content(model.model_dump(mode="json", exclude={"name", "parameters"}))
    return by_content(models_of(model).model_dump(mode="json", include=LOADED))


def prepare(comparison: Comparison) -> Comparison:
    """Return the comparison with absolute paths and prompts that are here.

    Raises:
        ValueError: naming every file that is missing or is not what it should be.
        hub.HubAway: prompts of the hub cannot be had now.
    """
    found = paths.resolved(comparison)
    here = [
        entry.model_copy(update={"path": local_copy(entry.path, (entry.column, *entry.groups), found.storage)})
        for entry in found.prompts
    ]
    found = found.model_copy(update={"prompts": tuple(here)})
    if mistakes := list(_mistakes(found)):
        raise ValueError("\n".join(mistakes))
    return found


def models_of(entry: AlignedRun | OneStep) -> Models:
    """Return the models section of a generator; of a run, with what it exported in the place of its generator."""
    if isinstance(entry, OneStep):
        return entry.models
    models = paths.resolved(load(Path(entry.run) / "config.yaml").models)
    return models.model_copy(update={"generator": str(Path(entry.run) / "pipeline"), "assistant": None})


def files_of(entry: Model) -> list[str]:
    """Return the pipelines and files that a model is loaded from, its text encoders' first."""
    if isinstance(entry, Stock):
        return [entry.location] if entry.weights is None else [entry.location, entry.weights]
    return [models_of(entry).reference, models_of(entry).generator]


def exported(run: AlignedRun) -> bool:
    """Return whether a run has exported its generator."""
    return (Path(run.run) / "pipeline" / "model_index.json").is_file()


def absent_model(field: str, model: Model) -> Iterator[str]:
    """Yield what of a model is not there."""
    if isinstance(model, AlignedRun) and not exported(model):
        yield f"{field}.run = {model.run!r}: holds no exported pipeline; finish the run, or give another directory"
        return
    for path in files_of(model):
        yield from preflight.absent(field, path)


def _mistakes(comparison: Comparison) -> Iterator[str]:
    named: list[tuple[str, str]] = []
    for model in comparison.models:
        yield from absent_model(f"models.{model.name}", model)
    for entry in comparison.prompts:
        try:
            pictures = len(grouped_prompts(entry)) * comparison.images_per_prompt
        except ValueError as error:
            yield f"prompts.{entry.name}: {error}"
            continue
        if comparison.features is not None and pictures < 2:
            yield f"prompts.{entry.name}: a single picture has neither FID nor KID; give more, or features: null"
    yield from preflight.absent_rewards(comparison.rewards)
    if (features := comparison.features) is not None:
        named.append(("features.checkpoint", features.checkpoint))
        if not Path(features.images).is_dir():
            yield f"features.images = {features.images!r}: is no folder; give one of .png or .jpg pictures"
    for field, path in named:
        yield from preflight.absent(field, path)
