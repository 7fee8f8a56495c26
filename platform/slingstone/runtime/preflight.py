"""What would fail in minutes on a cluster, found in seconds before anything is held. Imports neither torch nor ray."""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from slingstone.config import Data, Evaluation, Experiment
from slingstone.config.tree import Models
from slingstone.prompts import read_prompts

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+(/.+\.(safetensors|bin|pt|pth))?")
"""A repository, or a file of weights in one."""
ROOT = Path(__file__).resolve().parents[3]
UNPACKED = re.compile(r"^/.*/working_dir_files/[^/]+/")
"""Where Ray unpacks a job's working directory."""


def prepare(run: Experiment) -> Experiment:
    """Return the run with absolute paths, so that it means the same in every process of the cluster.

    Raises:
        ValueError: naming every file that is missing or is not what it should be.
    """
    mistakes = [message for field, value, check in _files(run) if (message := check(field, located(value)))]
    mistakes += [
        message
        for field, data in (("data", run.data), ("evaluation", run.evaluation))
        if (message := _prompts(field, data))
    ]
    if "://" in run.storage:
        mistakes.append(f"storage = {run.storage!r}: is no directory; give one that all nodes see")
    if mistakes:
        raise ValueError("\n".join(mistakes))
    services = tuple(
        entry.model_copy(update={"checkpoint": located(entry.checkpoint)}) for entry in run.rewards.services
    )
    return run.model_copy(
        update={
            "storage": str(Path(run.storage).resolve()),
            "models": located_models(run.models),
            "rewards": run.rewards.model_copy(update={"services": services}),
            "data": run.data.model_copy(update={"prompts": located(run.data.prompts)}),
            "evaluation": run.evaluation.model_copy(update={"prompts": located(run.evaluation.prompts)}),
        }
    )


def located(path: str) -> str:
    """Return the absolute path of what exists in the working directory or beside the source; else the text itself.

    What a job recorded of sources that were unpacked for it, and are gone since, is found beside this source.
    """
    for place in (Path.cwd() / path, ROOT / path, ROOT / of_sources(path)):
        if place.exists():
            return str(place.resolve())
    return path


def located_models(models: Models) -> Models:
    """Return the models with absolute paths, hub ids as they are."""
    parts = ("reference", "generator", "assistant", "reward_decoder")
    return models.model_copy(update={name: located(value) for name, value in models if name in parts and value})


def of_sources(value: str) -> str:
    """Return a value; of a path into the sources, what comes after the place where a process found them.

    Each cluster unpacks the sources that come with a job into a directory of its own.
    """
    return UNPACKED.sub("", value.removeprefix(f"{ROOT}/"))


def fits(run: Experiment, available: Mapping[str, float]) -> None:
    """Refuse a run that the cluster can never hold.

    Args:
        run: what wants to start.
        available: the cluster's resources, as `ray.cluster_resources` gives them.

    Raises:
        ValueError: naming what is asked for and what there is.
    """
    services = run.rewards.services
    managed = services if (run.rewards.lifecycle, run.rewards.backend) == ("managed", "serve") else ()
    workers = run.runtime.num_workers
    needs = {
        "CPU": workers * run.runtime.threads_per_worker + sum(entry.num_replicas * entry.num_cpus for entry in managed),
        "GPU": workers * run.runtime.use_gpu * run.placement.trainer_gpu_share
        + sum(entry.num_replicas * entry.num_gpus for entry in managed),
    }
    for kind, needed in needs.items():
        has = available.get(kind, 0.0)
        if needed > has + 1e-9:
            held = f" and {len(managed)} managed rewards" if managed else ""
            raise ValueError(
                f"runtime.num_workers = {workers}: {workers} workers{held} need {needed:g} {kind}s, the cluster has"
                f" {has:g}; take fewer workers or threads_per_worker, or a larger cluster"
            )


Check = Callable[[str, str], str | None]


def _files(run: Experiment) -> Iterator[tuple[str, str, Check]]:
    yield "models.reference", run.models.reference, _pipeline
    yield "models.generator", run.models.generator, _pipeline
    if run.models.assistant is not None:
        yield "models.assistant", run.models.assistant, _pipeline
    if run.models.reward_decoder is not None:
        yield "models.reward_decoder", run.models.reward_decoder, there
    if run.rewards.lifecycle == "managed" or run.rewards.backend == "in_process":
        for entry in run.rewards.services:
            yield f"rewards.services.{entry.name}.checkpoint", entry.checkpoint, there


def _pipeline(field: str, path: str) -> str | None:
    if not Path(path).exists():
        return there(field, path)
    if Path(path).is_file() and field != "models.reference":
        # A single file of weights; loading says whether they are the network's.
        return None
    if not (Path(path) / "model_index.json").is_file():
        return (
            f"{field} = {path!r}: is no diffusers pipeline, it has no model_index.json; "
            "give a directory that save_pretrained wrote, or a hub id"
        )
    return None


def there(field: str, path: str) -> str | None:
    """Return what is wrong with a field that names neither something on disk nor a hub id."""
    if Path(path).exists() or HUB_ID.fullmatch(path):
        return None
    return f"{field} = {path!r}: does not exist; give a path from {Path.cwd()} or from the root, or a hub id"


def _prompts(section: str, settings: Data | Evaluation) -> str | None:
    try:
        read_prompts(located(settings.prompts), settings.column)
    except ValueError as error:
        return f"{section}.prompts: {error}"
    return None
