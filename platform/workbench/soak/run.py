"""A run twice, undisturbed and under faults, and what came of it."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from slingstone.config import Experiment, to_yaml
from workbench.soak import judge
from workbench.soak.fault_plan import Fault
from workbench.soak.faults import FAULTS
from workbench.soak.ground import Ground, ground
from workbench.soak.judge import Verdict
from workbench.soak.meter import Level, Meter, levels
from workbench.soak.scene import Scene
from workbench.soak.shrink import shrink

SETTLE_S = 90.0
POLL_S = 0.2
UNDELIVERED = "the same command delivers them"
"""What a run says that ended while MLflow was away."""
Say = Callable[[str], None]


@dataclass
class Outcome:
    """What a soak found."""

    verdicts: list[Verdict] = field(default_factory=list)
    levels: dict[str, list[Level]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    done: list[tuple[Fault, str]] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether every claim does."""
        return all(verdict.holds for verdict in self.verdicts)


def soak(experiment: Experiment, faults: Sequence[Fault], say: Say) -> Outcome:
    """Run twice, the second time under faults, and compare.

    Args:
        experiment: what; its storage, empty before, holds everything.
        faults: in the order in which they come.
        say: shows a line.

    Raises:
        ValueError: the storage is not empty.
        RuntimeError: a run did not come to its end, or a fault did not show; with what the run said last.
    """
    storage, outcome = Path(experiment.storage), Outcome()
    if storage.is_dir() and any(storage.iterdir()):
        raise ValueError(
            f"storage = {experiment.storage!r}: an earlier soak lies there; delete it, or name another place"
        )
    storage.mkdir(parents=True, exist_ok=True)
    orphans = judge.shared_memory()
    with ground(storage) as place:
        undisturbed, disturbed = (variant(experiment, name, place) for name in ("undisturbed", "disturbed"))
        with Meter(place) as first:
            outcome.seconds["undisturbed"], _ = play(Scene(undisturbed, place, Random(experiment.seed)), [], say)
            before = census(place)
        with Meter(place) as second:
            took, outcome.done = play(Scene(disturbed, place, Random(experiment.seed)), faults, say)
            outcome.seconds["disturbed"] = took
            after = _settled(place, before)
        outcome.levels = {"undisturbed": levels(first.samples), "disturbed": levels(second.samples)}
        outcome.verdicts = [
            *same_end(undisturbed, disturbed, place),
            *judge.nothing_left(before, after),
            judge.no_files_left(disturbed),
            judge.flat([*outcome.levels["undisturbed"], *outcome.levels["disturbed"]]),
        ]
    outcome.verdicts.append(judge.no_process_left([*first.samples, *second.samples]))
    left = sorted(judge.shared_memory() - orphans)
    outcome.verdicts.append(Verdict("no file is left in /dev/shm", not left, str(left)))
    return outcome


def same_end(first: Experiment, second: Experiment, place: Ground) -> list[Verdict]:
    """Compare the ends of two variants of a run: weights, the last checkpoint, and what MLflow was told."""
    one, other = (Path(run.storage) / "align" / run.name for run in (first, second))
    return [
        judge.same_pipeline(one, other),
        judge.same_checkpoint(first, second),
        *judge.same_metrics(place.tracking.uri, (first.name, second.name)),
    ]


def census(place: Ground) -> dict[str, Any]:
    """Count what lives in the cluster."""
    job = place.submit("-m", "workbench.soak.census")
    while not place.ended(job):
        time.sleep(POLL_S)
    lines = [line for line in place.said(job).splitlines() if line.startswith("{")]
    if not lines:
        raise RuntimeError(f"the census failed: {place.said(job)[-2000:]}")
    return json.loads(lines[-1])


def _settled(place: Ground, before: dict[str, Any]) -> dict[str, Any]:
    """Count until no more lives than before, or for a while: what a killed driver leaves, Ray takes down by and by."""
    over = time.monotonic() + SETTLE_S
    while True:
        found = census(place)
        if all(verdict.holds for verdict in judge.nothing_left(before, found)) or time.monotonic() > over:
            return found


def variant(experiment: Experiment, name: str, place: Ground) -> Experiment:
    """Write the run under another name, with small networks and the soak's own MLflow; return it."""
    storage = Path(experiment.storage)
    small = {
        part: str(shrink(Path(getattr(experiment.models, part)), storage / "networks" / part, seed))
        for seed, part in enumerate(("reference", "generator"))
    }
    tree = experiment.model_dump()
    tree["name"] = name
    tree["models"] |= small
    tree["tracking"] |= {"uri": place.tracking.uri}
    made = Experiment.model_validate(tree)
    (storage / f"{name}.yaml").write_text(to_yaml(made))
    return made


def play(scene: Scene, faults: Sequence[Fault], say: Say) -> tuple[float, list[tuple[Fault, str]]]:
    """Run to the end, with faults on the way; return the seconds, and what was done.

    Raises:
        RuntimeError: the run did not come to its end, or a fault did not show; with what the run said last. The job is
            stopped then.
    """
    start, waiting, done = time.monotonic(), list(faults), []
    with scene:
        while not _over(scene):
            if waiting and not scene.again and (position := scene.position()) >= waiting[0].images:
                fault = waiting.pop(0)
                try:
                    did = FAULTS[fault.kind](scene)
                except TimeoutError as error:
                    raise RuntimeError(f"{fault.kind}: {error}; {scene.ground.said(scene.job)[-3000:]}") from error
                done.append((fault, did))
                say(f"{time.monotonic() - start:5.0f} s  {position:>6} images  {fault.kind}: {did}")
            time.sleep(POLL_S)
    if waiting:
        raise RuntimeError(f"{scene.run.name} ended before {len(waiting)} of its faults")
    took = time.monotonic() - start
    say(f"{took:5.0f} s  {scene.run.name} ended")
    return took, done


def _over(scene: Scene) -> bool:
    """Return whether the run came to its end; a job that ended on the way to it is submitted again."""
    if not scene.ground.ended(scene.job):
        return False
    said = scene.ground.said(scene.job)
    if scene.ground.succeeded(scene.job):
        if UNDELIVERED not in said:
            return True
    elif not scene.again:
        raise RuntimeError(f"{scene.run.name} failed: {said[-3000:]}")
    scene.submit()
    return False
