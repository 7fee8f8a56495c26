"""A run twice, undisturbed and under faults, and what came of it."""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch
from ray.job_submission import JobStatus
from tabulate import tabulate

from slingstone.config import Experiment, to_yaml
from workbench.soak import verdicts
from workbench.soak.cluster import Cluster, running, wait
from workbench.soak.faults import FAULTS, Fault
from workbench.soak.job import Job
from workbench.soak.processes import Level, Meter, levels
from workbench.soak.verdicts import Verdict

MIB = 2**20
SETTLE_S = 90.0
POLL_S = 0.2
UNDELIVERED = "the same command delivers them"
"""What a run says that ended while MLflow was away."""
SMALL_UNET = {
    "block_out_channels": (64,),
    "down_block_types": ("DownBlock2D",),
    "mid_block_type": None,
    "up_block_types": ("UpBlock2D",),
    "norm_num_groups": 8,
}
"""One level without attention, six times faster than the smallest with it: nothing of the pictures matters."""
Say = Callable[[str], None]


@dataclass
class Outcome:
    """What a soak found."""

    verdicts: list[Verdict] = field(default_factory=list)
    levels: dict[str, list[Level]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    done: list[tuple[Fault, str]] = field(default_factory=list)

    def report(self, storage: Path) -> str:
        """Write soak.json under the storage; return it as text: levels of memory, then every claim."""
        (storage / "soak.json").write_text(json.dumps(asdict(self), indent=1))
        rows = [
            [run, one.role, *(value / MIB for value in one.memory), f"{one.growth:+.1%}", *map(int, one.files)]
            for run, found in self.levels.items()
            for one in found
        ]
        lines = [f"{'ok  ' if one.holds else 'FAIL'} {one.claim}: {one.found}" for one in self.verdicts]
        took = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in self.seconds.items())
        headers = ["long-lived processes", "", "MiB after warm-up", "at the end", "", "files", "at the end"]
        levels = tabulate(rows, headers, "simple", floatfmt=".1f")
        return "\n".join(["", levels, "", *lines, "", f"{len(self.done)} faults; {took}"])


def soak(experiment: Experiment, faults: Sequence[Fault], say: Say) -> Outcome:
    """Run twice, the second time under faults, and compare; the storage holds everything.

    Raises:
        ValueError: the storage is not empty.
        RuntimeError: a run did not come to its end, or a fault did not show; with what the run said last.
    """
    storage, outcome = Path(experiment.storage), Outcome()
    if storage.is_dir() and any(storage.iterdir()):
        raise ValueError(f"storage = {str(storage)!r}: an earlier soak lies there; delete it, or name another place")
    storage.mkdir(parents=True, exist_ok=True)
    orphans = verdicts.shared_memory()
    meters = {}
    with running(storage) as cluster:
        variants = {name: variant(experiment, name, cluster) for name in ("undisturbed", "disturbed")}
        counts: list[dict[str, Any]] = []
        for name, suffered in (("undisturbed", []), ("disturbed", faults)):
            with Meter(lambda: cluster.pid) as meters[name]:
                job = Job(variants[name], cluster, Random(experiment.seed))
                outcome.seconds[name], outcome.done = play(job, suffered, say)
                counts.append(_settled(cluster, counts[0]) if counts else census(cluster))
            outcome.levels[name] = levels(meters[name].samples)
        outcome.verdicts = [
            *verdicts.same_end(variants["undisturbed"], variants["disturbed"], cluster.mlflow.uri),
            *verdicts.nothing_left(counts[0], counts[1]),
            verdicts.no_files_left(variants["disturbed"]),
            verdicts.flat([level for found in outcome.levels.values() for level in found]),
        ]
    processes = [process for meter in meters.values() for process in meter.samples]
    outcome.verdicts.append(verdicts.no_process_left(processes))
    left = sorted(verdicts.shared_memory() - orphans)
    outcome.verdicts.append(Verdict("no file is left in /dev/shm", not left, str(left)))
    return outcome


def census(cluster: Cluster) -> dict[str, Any]:
    """Count what lives in the cluster."""
    job = cluster.submit("-m", "workbench.soak.census")
    wait(lambda: cluster.jobs.get_job_status(job).is_terminal(), "a census of the cluster", poll_s=POLL_S)
    log = cluster.jobs.get_job_logs(job)
    lines = [line for line in log.splitlines() if line.startswith("{")]
    if not lines:
        raise RuntimeError(f"the census failed: {log[-2000:]}")
    return json.loads(lines[-1])


def _settled(cluster: Cluster, before: dict[str, Any]) -> dict[str, Any]:
    """Count until no more lives than before, or for a while: what a killed driver leaves, Ray takes down by and by."""
    over = time.monotonic() + SETTLE_S
    while True:
        found = census(cluster)
        if all(verdict.holds for verdict in verdicts.nothing_left(before, found)) or time.monotonic() > over:
            return found


def variant(experiment: Experiment, name: str, cluster: Cluster) -> Experiment:
    """Write the run under another name, with small networks and the soak's own MLflow; return it."""
    storage = Path(experiment.storage)
    small = {
        part: str(shrink(Path(getattr(experiment.models, part)), storage / "networks" / part, seed))
        for seed, part in enumerate(("reference", "generator"))
    }
    tree = experiment.model_dump()
    tree["name"] = name
    tree["models"] |= small
    tree["tracking"] |= {"uri": cluster.mlflow.uri}
    made = Experiment.model_validate(tree)
    (storage / f"{name}.yaml").write_text(to_yaml(made))
    return made


def shrink(pipeline: Path, target: Path, seed: int) -> Path:
    """Copy a pipeline over a directory, with a fresh `SMALL_UNET`, so that a step takes a tenth of a second; return it.

    Raises:
        ValueError: it is no local pipeline with a UNet.
    """
    from diffusers import UNet2DConditionModel

    if not (pipeline / "unet").is_dir():
        raise ValueError(f"models = {str(pipeline)!r}: a soak needs a local pipeline with a UNet; name one")
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(pipeline, target)
    shape = json.loads((pipeline / "unet" / "config.json").read_text()) | SMALL_UNET
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(**{name: value for name, value in shape.items() if not name.startswith("_")})
    shutil.rmtree(target / "unet")
    unet.save_pretrained(target / "unet")
    return target


def play(job: Job, faults: Sequence[Fault], say: Say) -> tuple[float, list[tuple[Fault, str]]]:
    """Run to the end, with faults on the way; return the seconds, and what was done.

    Raises:
        RuntimeError: the run did not come to its end, or a fault did not show; with what the run said last. The job is
            stopped then.
    """
    start, waiting, done = time.monotonic(), list(faults), []
    with job:
        while not _over(job):
            if waiting and not job.stopped and (position := job.position()) >= waiting[0].images:
                fault = waiting.pop(0)
                try:
                    did = FAULTS[fault.kind](job)
                except TimeoutError as error:
                    raise RuntimeError(f"{fault.kind}: {error}; {job.log[-3000:]}") from error
                done.append((fault, did))
                say(f"{time.monotonic() - start:5.0f} s  {position:>6} images  {fault.kind}: {did}")
            time.sleep(POLL_S)
    if waiting:
        raise RuntimeError(f"{job.experiment.name} ended before {len(waiting)} of its faults")
    took = time.monotonic() - start
    say(f"{took:5.0f} s  {job.experiment.name} ended")
    return took, done


def _over(job: Job) -> bool:
    """Return whether the run came to its end; a job that ended on the way to it is submitted again."""
    status = job.status
    if not status.is_terminal():
        return False
    if status == JobStatus.SUCCEEDED:
        if UNDELIVERED not in job.log:
            return True
    elif not job.stopped:
        raise RuntimeError(f"{job.experiment.name} failed: {job.log[-3000:]}")
    job.submit()
    return False
