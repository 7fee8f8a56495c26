"""The driver of an evaluation: rewards, workers, pieces, and what they add up to."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from PIL.Image import Image
from ray.exceptions import RayActorError, RayTaskError

from reward_services.spec import label_selector
from slingstone import tracking
from slingstone.compare import results
from slingstone.compare.judge import Worker, read_sheet, write_json
from slingstone.compare.pieces import Piece, Plan
from slingstone.driver import cluster, launch, placement, rewards
from slingstone.evaluation.grids import prompt_grid
from slingstone.worker.progress import BAR, EVERY_S, duration

ATTEMPTS = 2
"""How often a piece is begun before its worker's death is taken for its fault."""


def compare(plan: Plan, say: Callable[[str], None]) -> dict[str, Any]:
    """Evaluate all models, or what an interrupted evaluation has left; return what summary.json holds.

    Raises:
        ValueError: what the user can mend.
        launch.RunFailed: a piece could not be evaluated; what is done stays done.
    """
    settings = plan.settings
    if not ray.is_initialized():
        cluster.connect(settings.workers.threads_per_worker)
    _fits(plan)
    pieces = plan.pieces()
    left = [piece for piece in pieces if not piece.done]
    say(f"{len(settings.models)} models, {len(pieces)} pieces, {len(pieces) - len(left)} of them known")
    start = time.monotonic()
    real = plan.directory / "real_features" / f"{_features_key(plan)}.pt"
    if left:
        with rewards.running(settings.rewards, settings.placement):
            _work(plan, left, len(pieces) - len(left), len(pieces), say)
    if settings.features is not None and not real.is_file():
        say("computing the features of the real pictures")
        with _alone(plan) as call:
            call("real_features", real)
    sheets = _sheets(plan, say)
    speeds = {entry.name: _speed(plan, number, say) for number, entry in enumerate(settings.models)}
    summary = results.collect(plan, pieces, speeds, real)
    summary["seconds"] = round(time.monotonic() - start, 1)
    results.write(plan, summary, sheets)
    uri = tracking.tracking_uri_of(settings.tracking, settings.storage)
    summary["mlflow_run_id"] = results.track(plan, summary, uri)
    write_json(plan.directory / "summary.json", summary)
    say("")
    say((plan.directory / "table.md").read_text())
    for title, name in (("table", "table.md"), ("pictures", "sheets"), ("rows", "results.parquet")):
        say(f"{title:<9} {plan.directory / name}")
    return summary


def _work(plan: Plan, left: list[Piece], known: int, total: int, say: Callable[[str], None]) -> None:
    """Have workers take piece after piece; each stays with a model while pieces of it are left."""
    count = min(plan.settings.workers.num_workers, len(left))
    bar = _Bar(say, known, total)
    waiting, attempts = list(left), dict.fromkeys(left, 0)
    idle: list[tuple[Any, int]] = [(_worker(plan), -1) for _ in range(count)]
    busy: dict[Any, tuple[Any, Piece]] = {}
    try:
        while waiting or busy:
            while waiting and idle:
                worker, held = idle.pop()
                piece = next((piece for piece in waiting if piece.model == held), waiting[0])
                waiting.remove(piece)
                attempts[piece] += 1
                busy[worker.evaluate.remote(piece)] = worker, piece
            (done,), _ = ray.wait(list(busy), num_returns=1)
            worker, piece = busy.pop(done)
            try:
                bar.add(ray.get(done))
            except RayActorError as error:
                if attempts[piece] >= ATTEMPTS:
                    raise _failure(plan, piece, error) from error
                waiting.insert(0, piece)
                idle.append((_worker(plan), -1))
                continue
            except RayTaskError as error:
                raise _failure(plan, piece, error.cause) from error
            idle.append((worker, piece.model))
    finally:
        for worker in [worker for worker, _ in (*idle, *busy.values())]:
            ray.kill(worker)


def _failure(plan: Plan, piece: Piece, error: Exception) -> Exception:
    model, prompts = plan.settings.models[piece.model].name, plan.settings.prompts[piece.prompts].name
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    kind = ValueError if isinstance(error, ValueError) else launch.RunFailed
    return kind(f"models.{model} on prompts.{prompts}: {reason}")


def _worker(plan: Plan) -> Any:
    workers = plan.settings.workers
    selector = label_selector(plan.settings.placement.trainer)
    actor = ray.remote(num_cpus=workers.threads_per_worker, num_gpus=int(workers.use_gpu), label_selector=selector)(
        Worker
    )
    return actor.remote(plan)


@contextmanager
def _alone(plan: Plan) -> Iterator[Callable[..., Any]]:
    """Yield a function that has one worker call a method by name, while no other worker is at work."""
    worker = _worker(plan)

    def call(method: str, *arguments: Any) -> Any:
        try:
            return ray.get(getattr(worker, method).remote(*arguments))
        except RayTaskError as error:
            raise launch.RunFailed(f"{method}: {error.cause}") from error

    try:
        yield call
    finally:
        ray.kill(worker)


def _sheets(plan: Plan, say: Callable[[str], None]) -> dict[str, Image]:
    """Return a contact sheet a set of prompts: a row a prompt, a column a model."""
    models = plan.settings.models
    sets = {entry.name: plan.prompt_set(entry).prompts for entry in plan.settings.prompts}
    shown = {name: list(prompts[: plan.settings.sheet_prompts]) for name, prompts in sets.items()}
    missing = [
        (number, prompts, path)
        for number in range(len(models))
        for prompts in shown.values()
        if not (path := results.sheet_path(plan, number, prompts)).is_file()
    ]
    if missing:
        say("drawing the contact sheets")
        with _alone(plan) as call:
            for number, prompts, path in missing:
                call("sheet", number, prompts, path)
    sheets = {}
    for name, prompts in shown.items():
        kept = {entry.name: results.sheet_path(plan, number, prompts) for number, entry in enumerate(models)}
        sheets[name] = prompt_grid(results.one_size({model: read_sheet(path) for model, path in kept.items()}), prompts)
    return sheets


def _speed(plan: Plan, number: int, say: Callable[[str], None]) -> dict[str, float]:
    """Return latency and memory of a model, measured in a process of its own while nothing else runs."""
    if plan.settings.latency is None:
        return {}
    say(f"timing {plan.settings.models[number].name}")
    prompts = plan.prompt_set(plan.settings.prompts[0]).prompts
    with _alone(plan) as call:
        return call("speed", number, prompts)


def _features_key(plan: Plan) -> str:
    features = plan.settings.features
    return results.digest(features.model_dump(mode="json") if features else None)


def _fits(plan: Plan) -> None:
    """Refuse workers that the cluster can never hold."""
    workers, nodes = plan.settings.workers, ray.nodes()
    deployed = placement.managed(plan.settings.rewards, plan.settings.placement)
    placement.check_labels(plan.settings.placement, deployed, nodes)
    each = {"CPU": workers.threads_per_worker, "GPU": int(workers.use_gpu)}
    placement.check_total("workers.num_workers", workers.num_workers, each, deployed, nodes)


class _Bar:
    """Says every few seconds how many pieces are done."""

    def __init__(self, say: Callable[[str], None], known: int, total: int) -> None:
        self._say = say
        self._done = self._known = known
        self._total = total
        self._pictures = 0
        self._start = self._last = time.monotonic()

    def add(self, pictures: int) -> None:
        """Take note of a piece."""
        self._done += 1
        self._pictures += pictures
        now = time.monotonic()
        if self._done == self._total or now - self._last >= EVERY_S:
            self._last = now
            seconds = now - self._start
            left_s = seconds / (self._done - self._known) * (self._total - self._done)
            bar = "#" * int(self._done / self._total * BAR)
            self._say(
                f"[{bar:-<{BAR}}] {self._done}/{self._total} pieces  {self._pictures / seconds:.1f} images/s"
                f"  ETA {duration(left_s)}"
            )
