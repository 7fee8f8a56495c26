"""The Train worker of the benchmark: the job's own step and the plain loop, block by block in turns."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import ray.train.torch
import torch
from torch import Tensor

from slingstone.config import Experiment
from slingstone.prompts.files import read_prompts
from slingstone.step.panel import PendingReward, RewardPanel, RewardTerm
from slingstone.worker.assembly import Parts, assemble
from slingstone.worker.assignment import Assignment
from slingstone.worker.ranks import mean_over_ranks
from slingstone.worker.reporter import Reporter
from slingstone.worker.rewards import clients
from workbench.benchmark.statistics import ARMS, IN_PROCESS, JOB, LATE, PLAIN, QUICK, Block, Plan


def measure(assignment: Assignment, plan: Plan) -> dict[str, list[Block]]:
    """Return the blocks of each arm; runs as the only rank of a Train run."""
    experiment = assignment.experiment
    torch.set_num_threads(experiment.runtime.threads_per_worker)
    device = ray.train.torch.get_device()
    reporter = Reporter(assignment, rank=0)
    with _plain_process(Path(assignment.directory)) as plain_seconds:
        parts = assemble(assignment, 0, 1, device)
        arms = _arms(experiment, parts, plan.late, device)
        _warm_up(experiment, parts, arms)
        blocks: dict[str, list[Block]] = {arm: [] for arm in ARMS}
        for number in range(plan.rounds + 1):
            reporter.say(f"round {number} of {plan.rounds}" if number else "warming up")
            # There and back again, so that no arm always runs first or always after the same neighbour.
            for arm in list(ARMS) if number % 2 else reversed(ARMS):
                if arm == PLAIN:
                    block = Block(plain_seconds(plan.steps) / plan.steps)
                else:
                    block = _block(parts, reporter, arms[arm], plan.steps)
                if number:
                    blocks[arm].append(block)
    return blocks


@contextmanager
def _plain_process(directory: Path) -> Iterator[Callable[[int], float]]:
    """Yield what lets a plain loop take so many steps and returns their seconds.

    It has a process of its own, which has never met Ray or DeepSpeed; a child, so it has our threads and priority.
    """
    log = directory / "plain.log"
    command = [sys.executable, "-m", "workbench.benchmark.plain_loop", str(directory / "run.yaml")]
    with log.open("w") as errors:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True)

    def seconds(steps: int) -> float:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            print(steps, file=process.stdin, flush=True)
            return float(process.stdout.readline())
        except (BrokenPipeError, ValueError):
            raise RuntimeError(f"the plain loop ended early; see {log}") from None

    try:
        yield seconds
    finally:
        process.kill()
        process.wait()


@dataclass
class _Watched:
    """A reward, asked once a step, that adds up how long the trainer computed before it came to wait."""

    term: RewardTerm
    covered_s: float = 0.0

    def submit(self, images: Tensor, prompts: Sequence[str]) -> PendingReward:
        self._pending, self._asked = self.term.submit(images, prompts), time.perf_counter()
        return self

    def result(self) -> tuple[Tensor, Tensor]:
        self.covered_s += time.perf_counter() - self._asked
        return self._pending.result()


def _arms(experiment: Experiment, parts: Parts, late: str, device: torch.device) -> dict[str, list[RewardTerm]]:
    """Return the rewards of each arm of the job; everything else of them is the same."""
    served = list(parts.trainer.rewards.terms)
    inside = tuple(entry for entry in experiment.rewards.services if entry.weight > 0)
    local = clients(experiment.rewards.model_copy(update={"backend": "in_process", "services": inside}), device)
    return {
        JOB: served,
        IN_PROCESS: [replace(term, submit=local[term.name].submit) for term in served],
        QUICK: served[:1],
        LATE: [replace(served[0], submit=parts.measure.clients[late].submit)],
    }


def _warm_up(experiment: Experiment, parts: Parts, arms: dict[str, list[RewardTerm]]) -> None:
    """Embed every prompt once, here and in every reward, as the plain loop does."""
    family, size = parts.trainer.family, experiment.training.batch_size
    with torch.no_grad():
        noise = torch.zeros(size, *family.latent_shape, device=parts.trainer.rng.device)
        grey = torch.full_like(family.decoder.decode(noise), 0.5)
    every = read_prompts(experiment.data.prompts, experiment.data.column)
    for start in range(0, len(every), size):
        prompts = every[start : start + size]
        family.text_encoder.encode(prompts)
        for term in (*arms[JOB], *arms[IN_PROCESS], *arms[LATE]):
            term.submit(grey[: len(prompts)], prompts).result()


def _block(parts: Parts, reporter: Reporter, terms: list[RewardTerm], steps: int) -> Block:
    """Take steps as the job takes them, its report of every step included."""
    trainer, watched = parts.trainer, _Watched(terms[0])
    trainer.rewards = RewardPanel((replace(terms[0], submit=watched.submit), *terms[1:]))
    waited_s = 0.0
    start = time.perf_counter()
    for _ in range(steps):
        before = trainer.images
        metrics = mean_over_ranks(trainer.step())
        reporter.step(metrics, trainer.images, trainer.images - before)
        waited_s += metrics["seconds/reward_wait"]
    return Block((time.perf_counter() - start) / steps, watched.covered_s / steps, waited_s / steps)
