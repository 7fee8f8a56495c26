"""What would fail in minutes on a cluster, found in seconds before anything is held. Imports neither torch nor ray."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from slingstone.config import Data, Evaluation, Experiment
from slingstone.config.paths import HUB_ID, located, located_models
from slingstone.prompts.files import read_prompts


def prepare(experiment: Experiment) -> Experiment:
    """Return the run with absolute paths, so that it means the same in every process of the cluster.

    Raises:
        ValueError: naming every file that is missing or is not what it should be.
    """
    mistakes = [message for field, value, check in _files(experiment) if (message := check(field, located(value)))]
    mistakes += [
        message
        for field, data in (("data", experiment.data), ("evaluation", experiment.evaluation))
        if (message := _prompts(field, data))
    ]
    if "://" in experiment.storage:
        mistakes.append(f"storage = {experiment.storage!r}: is no directory; give one that all nodes see")
    if mistakes:
        raise ValueError("\n".join(mistakes))
    services = tuple(
        entry.model_copy(update={"checkpoint": located(entry.checkpoint)}) for entry in experiment.rewards.services
    )
    return experiment.model_copy(
        update={
            "storage": str(Path(experiment.storage).resolve()),
            "models": located_models(experiment.models),
            "rewards": experiment.rewards.model_copy(update={"services": services}),
            "data": experiment.data.model_copy(update={"prompts": located(experiment.data.prompts)}),
            "evaluation": experiment.evaluation.model_copy(update={"prompts": located(experiment.evaluation.prompts)}),
        }
    )


def fits(experiment: Experiment, available: Mapping[str, float]) -> None:
    """Refuse a run that the cluster can never hold.

    Args:
        experiment: what wants to start.
        available: the cluster's resources, as `ray.cluster_resources` gives them.

    Raises:
        ValueError: naming what is asked for and what there is.
    """
    services = experiment.rewards.services
    managed = services if (experiment.rewards.lifecycle, experiment.rewards.backend) == ("managed", "serve") else ()
    workers = experiment.runtime.num_workers
    needs = {
        "CPU": workers * experiment.runtime.threads_per_worker
        + sum(entry.num_replicas * entry.num_cpus for entry in managed),
        "GPU": workers * experiment.runtime.use_gpu * experiment.placement.trainer_gpu_share
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


def _files(experiment: Experiment) -> Iterator[tuple[str, str, Check]]:
    yield "models.reference", experiment.models.reference, _pipeline
    yield "models.generator", experiment.models.generator, _pipeline
    if experiment.models.assistant is not None:
        yield "models.assistant", experiment.models.assistant, _pipeline
    if experiment.models.reward_decoder is not None:
        yield "models.reward_decoder", experiment.models.reward_decoder, there
    if experiment.rewards.lifecycle == "managed" or experiment.rewards.backend == "in_process":
        for entry in experiment.rewards.services:
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
