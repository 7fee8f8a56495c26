"""The Train worker of the benchmark: the job's own step and the plain loop, block by block in turns."""

import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
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
from slingstone.worker.loop import mean_over_ranks
from slingstone.worker.reporter import Reporter
from slingstone.worker.rewards import clients
from workbench.benchmark.plain_loop import batches
from workbench.benchmark.statistics import ARMS, IN_PROCESS, JOB, LATE, PLAIN, QUICK, Block, Plan


def measure(assignment: Assignment, plan: Plan) -> dict[str, list[Block]]:
    """Return the blocks of each arm; runs as the only rank of a Train run."""
    experiment = assignment.experiment
    torch.set_num_threads(experiment.runtime.threads_per_worker)
    device = ray.train.torch.get_device()
    reporter = Reporter(assignment, rank=0)
    with _PlainProcess(Path(assignment.directory)) as plain:
        parts = assemble(assignment, 0, 1, device)
        arms = _arms(experiment, parts, plan.late, device)
        _warm_up(experiment, parts, arms)
        blocks: dict[str, list[Block]] = {arm: [] for arm in ARMS}
        for number in range(plan.rounds + 1):
            reporter.say(f"round {number} of {plan.rounds}" if number else "warming up")
            # There and back again, so that no arm always runs first or always after the same neighbour.
            for arm in list(ARMS) if number % 2 else reversed(ARMS):
                if arm == PLAIN:
                    block = Block(plain.seconds(plan.steps) / plan.steps)
                else:
                    block = _block(parts, reporter, arms[arm], plan.steps)
                if number:
                    blocks[arm].append(block)
    return blocks


class _PlainProcess(AbstractContextManager["_PlainProcess"]):
    """The plain loop in a process that has never met Ray or DeepSpeed; a child, so it has our threads and priority."""

    def __init__(self, directory: Path) -> None:
        self._log = directory / "plain.log"
        command = [sys.executable, "-m", "workbench.benchmark.plain_loop", str(directory / "run.yaml")]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )

    def seconds(self, steps: int) -> float:
        """Let it take so many steps; return how long they took."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(steps, file=self._process.stdin, flush=True)
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise RuntimeError(f"the plain loop ended early; see {self._log}")
        return float(answer)

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


@dataclass
class _Watched:
    """A reward that adds up how long the trainer computed before it came to wait."""

    term: RewardTerm
    covered_s: float = 0.0

    def submit(self, images: Tensor, prompts: Sequence[str]) -> PendingReward:
        return _WatchedPending(self, self.term.submit(images, prompts), time.perf_counter())


@dataclass
class _WatchedPending:
    watched: _Watched
    pending: PendingReward
    asked: float

    def result(self) -> tuple[Tensor, Tensor]:
        self.watched.covered_s += time.perf_counter() - self.asked
        return self.pending.result()


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
    for prompts in batches(read_prompts(experiment.data.prompts, experiment.data.column), size):
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
