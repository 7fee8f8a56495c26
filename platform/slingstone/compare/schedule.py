"""The driver of a comparison: rewards, evaluators, shards, and what they add up to."""

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from PIL.Image import Image
from ray.exceptions import RayActorError, RayTaskError
from torch.nn.functional import interpolate

from reward_services.spec import label_selector
from slingstone import atomic, tracking
from slingstone.compare import results
from slingstone.compare.contents import by_content, digest
from slingstone.compare.cut_prompts import cut_prompts
from slingstone.compare.evaluator import Evaluator, read_shard, read_sheet
from slingstone.compare.shards import Shard, directory, grouped_prompts, model_directory, shards_of
from slingstone.config import Comparison
from slingstone.driver import cluster, launch, placement, rewards, run_lease
from slingstone.evaluation.grids import prompt_grid
from slingstone.plan.cut_prompts import told
from slingstone.worker.progress import Progress


def compare(comparison: Comparison, say: Callable[[str], None]) -> dict[str, Any]:
    """Evaluate all models, or what an interrupted comparison has left; return what summary.json holds.

    Raises:
        ValueError: what the user can mend; another driver holds the comparison.
        launch.RunFailed: a shard could not be evaluated; what is done stays done.
    """
    with run_lease.held(directory(comparison), say):
        return _compare(comparison, say)


def _compare(comparison: Comparison, say: Callable[[str], None]) -> dict[str, Any]:
    uri = tracking.ready(comparison)
    if not ray.is_initialized():
        cluster.connect(comparison.workers.threads_per_worker, comparison.workers.open_cluster)
    _fits(comparison)
    shards, start, cut = shards_of(comparison), time.monotonic(), cut_prompts(comparison)
    say("\n".join(told(cut)))
    left = [shard for shard in shards if not shard.done]
    say(f"{len(comparison.models)} models, {len(shards)} shards, {len(shards) - len(left)} of them known")
    if left:
        known = sum(len(read_shard(shard).rows) for shard in shards if shard.done)
        with rewards.running(comparison.rewards, comparison.placement, directory(comparison)) as served:
            _evaluate(comparison.model_copy(update={"rewards": served}), left, known, say)
    features = comparison.features and comparison.features.model_dump(mode="json")
    real = directory(comparison) / "real_features" / f"{digest(by_content(features))}.pt"
    if features and not real.is_file():
        say("computing the features of the real pictures")
        _alone(comparison, "real_features", real)
    sheets = _sheets(comparison, say)
    summary = results.collect(comparison, shards, _speeds(comparison, say), real)
    summary["cut_prompts"] = cut
    summary["seconds"] = round(time.monotonic() - start, 1)
    results.write(comparison, summary, sheets)
    summary["mlflow_run_id"] = results.track(comparison, summary, uri)
    atomic.write_text(directory(comparison) / "summary.json", json.dumps(summary))
    say("")
    say((directory(comparison) / "table.md").read_text())
    for title, name in (("table", "table.md"), ("pictures", "sheets"), ("rows", "results.parquet")):
        say(f"{title:<9} {directory(comparison) / name}")
    return summary


def _evaluate(comparison: Comparison, left: Sequence[Shard], done: int, say: Callable[[str], None]) -> None:
    """Have evaluators take shard after shard, in their order, so that each stays with a model while it can.

    Ray starts an evaluator whose process or node is lost again, and its shard once more; a shard that kills two
    processes is taken for the cause.
    """
    prompts = sum(len(grouped_prompts(entry)) for entry in comparison.prompts)
    progress = Progress(say, len(comparison.models) * prompts * comparison.images_per_prompt)
    waiting, last = iter(left), time.monotonic()
    count = min(comparison.workers.num_workers, len(left))
    evaluators = [_start(comparison, restarts=len(left)) for _ in range(count)]
    first = zip(evaluators, waiting, strict=False)
    busy = {evaluator.evaluate.remote(shard): (evaluator, shard) for evaluator, shard in first}
    try:
        while busy:
            (ready,), _ = ray.wait(list(busy))
            evaluator, shard = busy.pop(ready)
            try:
                pictures = ray.get(ready)
            except (RayActorError, RayTaskError) as error:
                raise _failure(shard, error) from error
            done, since, last = done + pictures, time.monotonic() - last, time.monotonic()
            progress.step({"seconds/step": since}, done, pictures)
            if (following := next(waiting, None)) is not None:
                busy[evaluator.evaluate.remote(following)] = evaluator, following
    finally:
        for evaluator in evaluators:
            ray.kill(evaluator)


def _failure(shard: Shard, error: RayActorError | RayTaskError) -> Exception:
    cause = error.cause if isinstance(error, RayTaskError) else error
    reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
    kind = ValueError if isinstance(cause, ValueError) else launch.RunFailed
    lost = "two processes died of it: " if isinstance(error, RayActorError) else ""
    return kind(f"models.{shard.model} on prompts.{shard.prompts}: {lost}{reason}")


def _start(comparison: Comparison, restarts: int = 0) -> Any:
    """Return the handle of a new evaluator, which Ray starts again up to `restarts` times."""
    workers = comparison.workers
    actor = ray.remote(Evaluator).options(
        num_cpus=workers.threads_per_worker,
        num_gpus=int(workers.use_gpu),
        label_selector=label_selector(comparison.placement.trainer),
        max_restarts=restarts,
        max_task_retries=min(restarts, 1),
    )
    return actor.remote(comparison)


def _alone(comparison: Comparison, method: str, *arguments: Any) -> Any:
    """Return what a method of a new evaluator returns, while no other is at work."""
    evaluator = _start(comparison)
    try:
        return ray.get(getattr(evaluator, method).remote(*arguments))
    except RayTaskError as error:
        raise launch.RunFailed(f"{method}: {error.cause}") from error
    finally:
        ray.kill(evaluator)


def _sheets(comparison: Comparison, say: Callable[[str], None]) -> dict[str, Image]:
    """Return a contact sheet a set of prompts: a row a prompt, a column a model."""
    shown = {entry.name: list(grouped_prompts(entry))[: comparison.sheet_prompts] for entry in comparison.prompts}
    files = {
        (model.name, name): model_directory(comparison, model) / f"sheet-{digest(prompts)}.pt"
        for model in comparison.models
        for name, prompts in shown.items()
    }
    missing = [(model, shown[name], file) for (model, name), file in files.items() if not file.is_file()]
    if missing:
        say("drawing the contact sheets")
        _alone(comparison, "sheets", missing)
    sheets = {}
    for name, prompts in shown.items():
        columns = {model.name: read_sheet(files[model.name, name]) for model in comparison.models}
        side = max(images.shape[-1] for images in columns.values())
        columns = {model: interpolate(images, (side, side)) for model, images in columns.items()}
        sheets[name] = prompt_grid(columns, prompts)
    return sheets


def _speeds(comparison: Comparison, say: Callable[[str], None]) -> dict[str, dict[str, float]]:
    """Return latency and memory of each model, measured in a process of its own while nothing else runs."""
    if comparison.latency is None:
        return {model.name: {} for model in comparison.models}
    prompts, speeds = list(grouped_prompts(comparison.prompts[0])), {}
    for model in comparison.models:
        say(f"timing {model.name}")
        speeds[model.name] = _alone(comparison, "speed", model.name, prompts)
    return speeds


def _fits(comparison: Comparison) -> None:
    """Refuse workers that the cluster can never hold."""
    workers, nodes = comparison.workers, ray.nodes()
    deployed = placement.managed(comparison.rewards, comparison.placement)
    placement.check_labels(comparison.placement, deployed, nodes)
    each = {"CPU": workers.threads_per_worker, "GPU": int(workers.use_gpu)}
    placement.check_total("workers.num_workers", workers.num_workers, each, deployed, nodes)
    placement.check_packing(workers.num_workers, each, comparison.placement.trainer, deployed, nodes)
