"""Whether a run under faults ended as the undisturbed one did, and left nothing behind."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from deepspeed.runtime.fp16.loss_scaler import LossScalerBase
from safetensors.torch import load_file

from slingstone.checkpoints.manifest import FILE
from slingstone.checkpoints.run_directory import checkpoints
from slingstone.config import Experiment
from slingstone.engines.shards import read
from workbench.soak.processes import DAEMONS, Level, Process

TIMES = ("seconds/", "seconds_per_image", "images_per_second", "mfu", "memory/")
"""Parts of the names of metrics that differ from run to run."""
ENDING_S = 10.0


@dataclass(frozen=True)
class Verdict:
    """One claim about a soak."""

    claim: str
    holds: bool
    found: str


def same_end(first: Experiment, second: Experiment, uri: str) -> list[Verdict]:
    """Compare the ends of two variants of a run: weights, the last checkpoint, and what MLflow was told."""
    one, other = (Path(run.storage) / "align" / run.name for run in (first, second))
    return [same_pipeline(one, other), same_checkpoint(first, second), *same_metrics(uri, (first.name, second.name))]


def same_pipeline(first: Path, second: Path) -> Verdict:
    """Compare the exported weights of two runs, by their directories, bit for bit."""
    names = {path.relative_to(first) for path in (first / "pipeline").rglob("*.safetensors")}
    return _same_files("the exported weights are equal bit for bit", names, first, second, load_file)


def same_checkpoint(first: Experiment, second: Experiment) -> Verdict:
    """Compare the last checkpoints of two runs: weights, optimizers, averages, randomness, positions."""
    one, other = (Path(checkpoints(run)) / f"{run.training.num_images:012}" for run in (first, second))
    names = {path.relative_to(one) for path in one.rglob("*") if path.is_file() and path.name != FILE}
    return _same_files("so are optimizers, averages and randomness of the last checkpoint", names, one, other, read)


def _same_files(claim: str, names: set[Path], first: Path, second: Path, load: Callable[[Path], Any]) -> Verdict:
    differing = [str(name) for name in sorted(names) if not equal(load(first / name), load(second / name))]
    found = f"{len(names)} files, {len(differing)} differ {differing or ''}".strip()
    return Verdict(claim, bool(names) and not differing, found)


def equal(first: Any, second: Any) -> bool:
    """Compare trees of tensors and plain values bit for bit."""
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, Mapping):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(equal, first, second))
    if isinstance(first, LossScalerBase):
        return type(first) is type(second) and equal(vars(first), vars(second))
    return bool(first == second)


def same_metrics(uri: str, names: tuple[str, str]) -> list[Verdict]:
    """Compare what MLflow has of two runs: the same numbers at the same positions, each once, in one run each."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = [client.search_runs(experiments, f"attributes.run_name = '{name}'") for name in names]
    single = all(len(found) == 1 and found[0].info.status == "FINISHED" for found in runs)
    status = "; ".join(", ".join(f"{run.info.run_name}: {run.info.status}" for run in found) for found in runs)
    one_each = Verdict("each is one MLflow run, and finished", single, status)
    if not single:
        return [one_each]
    undisturbed, disturbed = (_histories(client, run) for (run,) in runs)
    twice = [key for key, found in disturbed.items() if len({step for step, _ in found}) != len(found)]
    differing = [key for key in undisturbed if undisturbed[key] != disturbed.get(key)]
    count = f"{sum(map(len, disturbed.values()))} numbers of {len(disturbed)} metrics"
    return [
        one_each,
        Verdict("no number is counted twice", not twice, f"{count}; twice: {twice}"),
        Verdict("every number is there, and the same", not differing, f"{len(differing)} metrics differ {differing}"),
    ]


def _histories(client: Any, run: Any) -> dict[str, list[tuple[int, float]]]:
    """Return the points of all metrics of a run but times."""
    names = [name for name in run.data.metrics if not any(part in name for part in TIMES)]
    points = {name: client.get_metric_history(run.info.run_id, name) for name in names}
    return {name: [(point.step, point.value) for point in found] for name, found in points.items()}


def nothing_left(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Verdict]:
    """Compare two counts of what lives in the cluster, see `census`: after one run, and after the next."""
    actors = {name: count for name, count in after["actors"].items() if count > before["actors"].get(name, 0)}
    return [
        Verdict("no actor is left", not actors, f"{sum(after['actors'].values())} as before; more of: {actors}"),
        Verdict("no placement group is left", after["placement_groups"] == 0, str(after["placement_groups"])),
        Verdict(
            "no object is left in shared memory",
            after["objects"] <= before["objects"],
            f"{after['objects']} objects, {after['object_bytes']} bytes; {before['objects']} before",
        ),
    ]


def no_files_left(experiment: Experiment) -> Verdict:
    """Look for what does not belong under a run's checkpoints."""
    names = sorted(path.name for path in Path(checkpoints(experiment)).iterdir())
    kept = [name for name in names if name.isdigit()]
    strange = [name for name in names if not name.isdigit() and not name.startswith("damaged-")]
    holds = not strange and len(kept) <= experiment.training.keep_checkpoints
    return Verdict("nothing but the last checkpoints, and those set aside, lies there", holds, ", ".join(names))


def no_process_left(processes: Iterable[Process]) -> Verdict:
    """Look for processes of a cluster that is down, after a moment in which they may end."""
    roles = {process: role for role, process in processes if process.is_running()}
    _, alive = psutil.wait_procs([*roles], timeout=ENDING_S)
    left = []
    for process in alive:
        with suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE:
                left.append((roles[process], process.pid))
    return Verdict("no process outlives the cluster", not left, str(left))


def shared_memory() -> set[str]:
    """Return the files in shared memory that no process has mapped: whoever made them is gone."""
    names = {f"/dev/shm/{path.name}" for path in Path("/dev/shm").iterdir()}
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            names -= {mapped.path for mapped in process.memory_maps()}
    return names


def flat(levels: Iterable[Level]) -> Verdict:
    """Say whether the memory of the run's long-lived processes stayed level; Ray's daemons are told apart."""
    found = list(levels)
    own = [one for one in found if one.role not in DAEMONS]
    worst = max((one.growth for one in own), default=0.0)
    ours, rays = (
        ", ".join(f"{one.role} {one.growth:+.1%}" for one in found if not one.flat and (one.role in DAEMONS) is daemon)
        for daemon in (False, True)
    )
    detail = f"{len(own)} processes, at most {worst:+.1%}; grown: {ours or 'none'}; of Ray's daemons: {rays or 'none'}"
    return Verdict("memory and open files of the run's processes stay level, within 5 %", not ours, detail)
