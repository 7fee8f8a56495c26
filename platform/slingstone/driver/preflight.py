"""What would fail in minutes on a cluster, found in seconds before anything is held. Imports neither torch nor ray."""

from collections.abc import Iterator
from pathlib import Path

from slingstone.config import Experiment, Models, Rewards
from slingstone.config.paths import HUB_ID, resolved
from slingstone.prompts.files import read_prompts
from slingstone.prompts.hub import local_copy

LOADED = ("unet", "transformer", "vae", "text_encoder")
"""How the parts of a pipeline begin whose weights a run loads."""


def prepare(experiment: Experiment, base: Path | None = None) -> Experiment:
    """Return the run with absolute paths and prompts that are here, so that it means the same in every process.

    Args:
        experiment: as it was loaded.
        base: where relative paths begin; the working directory if it is not given.

    Raises:
        ValueError: naming every file that is missing or is not what it should be.
        hub.HubAway: prompts of the hub cannot be had now.
    """
    found = resolved(experiment, base)
    mistakes = [*_models(found.models), *absent_rewards(found.rewards)]
    if "://" in found.storage:
        mistakes.append(f"storage = {found.storage!r}: is no directory; give one that all nodes see")
    for section in ("data", "evaluation"):
        settings = getattr(found, section)
        try:
            here = local_copy(settings.prompts, (settings.column,), found.storage)
            read_prompts(here, settings.column)
        except ValueError as error:
            mistakes.append(f"{section}.prompts: {error}")
            continue
        found = found.model_copy(update={section: settings.model_copy(update={"prompts": here})})
    if mistakes:
        raise ValueError("\n".join(mistakes))
    return found


def absent(field: str, path: str) -> Iterator[str]:
    """Yield what is wrong with a field that names neither something on disk nor a hub id."""
    if not Path(path).exists() and not HUB_ID.fullmatch(path):
        yield f"{field} = {path!r}: does not exist; give a path from {Path.cwd()} or from the root, or a hub id"


def absent_rewards(rewards: Rewards) -> Iterator[str]:
    """Yield what is wrong with the checkpoints of the rewards that are loaded by this run."""
    if rewards.lifecycle == "managed" or rewards.backend == "in_process":
        for entry in rewards.services:
            yield from absent(f"rewards.services.{entry.name}.checkpoint", entry.checkpoint)


def _models(models: Models) -> Iterator[str]:
    for name in ("reference", "generator", "assistant"):
        field, path = f"models.{name}", getattr(models, name)
        if path is None:
            continue
        yield from absent(field, path)
        # Whether a single file of weights is the network's shows when it is loaded; the reference is no such file.
        is_pipeline = (Path(path) / "model_index.json").is_file()
        if not is_pipeline and (Path(path).is_dir() or (Path(path).is_file() and name == "reference")):
            yield (
                f"{field} = {path!r}: is no diffusers pipeline, it has no model_index.json; "
                "give a directory that save_pretrained wrote, or a hub id"
            )
        elif is_pipeline and (part := _of_variants_alone(Path(path))):
            yield (
                f"{field} = {path!r}: {part}/ holds weights of a variant alone, such as fp16; give a pipeline that was "
                "saved without `variant`"
            )
    if models.reward_decoder is not None:
        yield from absent("models.reward_decoder", models.reward_decoder)


def _of_variants_alone(pipeline: Path) -> str | None:
    """Return the first part of a pipeline all of whose weights are of a variant: `model.fp16.safetensors`."""
    for part in sorted(path for path in pipeline.iterdir() if path.name.startswith(LOADED)):
        files = [file.name for kind in ("*.safetensors", "*.bin") for file in part.glob(kind)]
        if files and all(name.count(".") > 1 for name in files):
            return part.name
    return None
