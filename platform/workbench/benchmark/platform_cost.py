"""The driver of the benchmark: a run cut down to one worker, its rewards, and the summary of what was measured."""

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from slingstone import tracking
from slingstone.config import Data, Experiment, to_yaml
from slingstone.driver import cluster, launch, placement, rewards
from slingstone.driver.board import open_board
from slingstone.prompts.files import read_prompts
from slingstone.worker.assignment import Assignment
from workbench import late_reward
from workbench.benchmark.statistics import ARMS, Block, Plan, summarise, table

LATENCY_S = 0.15
PROMPTS = 256
"""Few enough for rewards to remember; their first embedding is no part of a step."""


def bench(experiment: Experiment, rounds: int, steps: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure the platform's tax and the latency that it hides; return what `<storage>/bench/summary.json` holds.

    One worker of the job, with the batch that a worker of the run has, and a plain loop in a process of its own take
    turns of a few steps each. Both trainers have `runtime.threads_per_worker` threads. A difference remains and is the
    design: the job's rewards are computed in processes of their own, beside the trainer if there is a free core, while
    the plain loop computes them itself. Therefore the job is also measured with its rewards in its own process.

    Args:
        experiment: with absolute paths, see `preflight.prepare`.
        rounds: blocks of each arm, after one that is not counted.
        steps: of a block; together they should take longer than the tracking's flush interval.
        say: shows a line.

    Raises:
        ValueError: what the user can mend.
        launch.RunFailed: the measurement did not come to its end.
    """
    _check(experiment, rounds, steps)
    experiment, plan = alone(experiment, rounds, steps)
    directory = Path(experiment.storage) / experiment.name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    prompts = read_prompts(experiment.data.prompts, experiment.data.column)[:PROMPTS]
    (directory / "prompts.txt").write_text("\n".join(prompts) + "\n", encoding="utf-8")
    data = Data(prompts=str(directory / "prompts.txt"))
    experiment = experiment.model_copy(update={"data": data})
    (directory / "run.yaml").write_text(to_yaml(experiment))
    if not ray.is_initialized():
        cluster.connect(experiment.runtime.threads_per_worker, experiment.runtime.open_cluster)
    placement.check(experiment, ray.nodes())
    summary = summarise(_measure(experiment, directory, plan, say), LATENCY_S)
    cpus = os.cpu_count()
    batch, threads = experiment.training.batch_size, experiment.runtime.threads_per_worker
    summary |= {"cpus": cpus, "threads": threads, "batch_size": batch, "rounds": rounds, "steps_per_block": steps}
    path = Path(experiment.storage) / "summary.json"
    path.write_text(json.dumps(summary, indent=1))
    say(f"\n{table(summary)}")
    say(
        f"\nmedian and quartiles of {rounds} rounds of {steps} steps of {batch} images; threads in either trainer:"
        f" {threads}, CPUs: {cpus};\nthe job's rewards run beside its trainer, the plain loop computes them itself"
    )
    say(f"summary   {path}")
    return summary


def alone(experiment: Experiment, rounds: int, steps: int) -> tuple[Experiment, Plan]:
    """Return the run as one of its workers sees it, with a late copy of its first reward.

    The late one waits before each of the passes that a batch takes, so the latency is divided among them.
    """
    training, services = experiment.training, experiment.rewards.services
    batch = training.batch_size // experiment.runtime.num_workers
    first = next(entry for entry in services if entry.weight > 0)
    latency_s = LATENCY_S / math.ceil(batch / first.max_batch_images)
    late = late_reward.late(first.model_copy(update={"name": f"{first.name}-late", "weight": 0.0}), latency_s)
    trained_on = tuple(entry for entry in services if entry.weight > 0)
    num_images = batch * steps * (rounds + 1) * len(ARMS)
    updates = {
        "storage": str(Path(experiment.storage) / "bench"),
        "runtime": experiment.runtime.model_copy(update={"num_workers": 1}),
        "training": training.model_copy(update={"batch_size": batch, "warmup_images": 0, "num_images": num_images}),
        "rewards": experiment.rewards.model_copy(
            update={"lifecycle": "managed", "backend": "serve", "services": (*trained_on, late)}
        ),
    }
    return experiment.model_copy(update=updates), Plan(rounds, steps, late.name)


def _check(experiment: Experiment, rounds: int, steps: int) -> None:
    if rounds < 2 or steps < 1:
        raise ValueError(f"rounds = {rounds}, steps = {steps}: take at least 2 rounds of 1 step, for a spread")
    if experiment.objective.reward_weight == 0 or not any(entry.weight > 0 for entry in experiment.rewards.services):
        raise ValueError("objective.reward_weight: the benchmark needs a run that is trained on a reward")
    if experiment.runtime.precision != "fp32":
        raise ValueError(
            f"runtime.precision = {experiment.runtime.precision!r}: the plain loop is fp32; measure with fp32"
        )


def _measure(experiment: Experiment, directory: Path, plan: Plan, say: Callable[[str], None]) -> dict[str, list[Block]]:
    with rewards.running(experiment.rewards, experiment.placement, directory) as served:
        uri = tracking.tracking_uri(experiment)
        tracked = tracking.open_run(experiment, uri, directory)
        status = "FAILED"
        try:
            # The job's progress bar is paid for, but says nothing here.
            with open_board(lambda line: None if line.startswith("[") else say(line)) as board:
                assignment = Assignment(experiment, str(directory), uri, tracked.run_id, board, served)
                blocks = launch.fit(experiment, _rank, {"assignment": assignment, "plan": plan}, directory)
            status = "FINISHED"
        finally:
            tracked.end(status)
    return blocks


def _rank(config: dict[str, Any]) -> dict[str, list[Block]]:
    from workbench.benchmark.rounds import measure  # here: neither driver nor controller needs networks

    return measure(config["assignment"], config["plan"])
