"""Evaluations inside the Train workers: split over the ranks, the same code during and after training."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from PIL.Image import Image
from torch import Tensor, nn

from reward_services.protocol import RewardClient
from slingstone import atomic
from slingstone.checkpoints.collectives import from_rank_0
from slingstone.config import Evaluation
from slingstone.evaluation.grids import first_pictures, prompt_grid
from slingstone.evaluation.protocol import Judge, evaluate, merge
from slingstone.networks.protocol import ModelFamily
from slingstone.networks.sampling import Sampler, one_step_sampler, reference_sampler
from slingstone.prompts.files import read_prompts

SHORT = 8
"""An evaluation during training takes every so many-th part of the prompts."""


@dataclass(frozen=True)
class Measure:
    """The evaluation of one run on one rank; rank 0 writes results and grid pictures to `directory`.

    `initial` and `reference` read back what was found before a restart. Those that evaluate are collectives.
    """

    settings: Evaluation
    family: ModelFamily
    clients: Mapping[str, RewardClient]
    directory: Path
    rank: int
    world: int

    def initial(self, generator: nn.Module) -> dict[str, Any]:
        """Evaluate the generator as it was loaded."""
        return self._known("init", lambda: self._full("init", one_step_sampler(self.family, generator)))

    def aligned(self, generator: nn.Module) -> dict[str, Any]:
        """Evaluate the averaged generator in full."""
        return self._full("aligned", one_step_sampler(self.family, generator))

    def reference(self, label: str) -> dict[str, Any]:
        """Evaluate the many-step rival in full."""
        assert self.settings.reference is not None
        steps, guidance = self.settings.reference.steps, self.settings.reference.guidance
        return self._known(label, lambda: self._full(label, reference_sampler(self.family, steps, guidance)))

    def initial_short(self, generator: nn.Module) -> dict[str, Any]:
        """Return what `short` finds of the initial generator."""
        return self._known("init_short", lambda: self._written("init_short", self.short(generator)))

    def short(self, generator: nn.Module) -> dict[str, Any]:
        """Evaluate a one-step generator on a part of the prompts; where it is not finite, no number is."""
        count = max(1, self.settings.num_prompts // SHORT)
        return self._evaluate(one_step_sampler(self.family, generator), self.prompts[:count])

    def grid(self, labels: Iterable[str], generators: Mapping[str, nn.Module] | None = None) -> Image:
        """Return the prompt grid: the pictures of full evaluations by their labels, beside those of generators now."""
        columns = {}
        for label in labels:
            columns[label.replace("_", " ")] = pictures = kept_pictures(self.directory.parent, label)
            assert pictures is not None
        for title, generator in (generators or {}).items():
            columns[title] = self._draw(one_step_sampler(self.family, generator))
        return prompt_grid(columns, self.prompts[: self.settings.grid_prompts])

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts of a full evaluation."""
        return held_out(self.settings)

    def _known(self, label: str, find: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what an earlier start found, else what `find` returns."""
        return from_rank_0(lambda: atomic.read_json(self.directory / f"{label}.json")) or find()

    def _written(self, label: str, summary: dict[str, Any]) -> dict[str, Any]:
        if self.rank == 0:
            atomic.write_text(self.directory / f"{label}.json", json.dumps(summary, indent=1))
        return summary

    def _full(self, label: str, sampler: Sampler) -> dict[str, Any]:
        summary = self._evaluate(sampler, self.prompts)
        require_finite(f"the generator of the evaluation {label!r}", summary)
        if self.rank == 0:
            with atomic.replacing(self.directory / f"{label}.pt") as path:
                torch.save((self._draw(sampler) * 255).round().to(torch.uint8), path)
        return self._written(label, summary)

    def _draw(self, sampler: Sampler) -> Tensor:
        prompts = self.prompts[: self.settings.grid_prompts]
        return first_pictures(sampler, prompts, self.settings.seed).cpu()

    def _evaluate(self, sampler: Sampler, prompts: tuple[str, ...]) -> dict[str, Any]:
        settings = self.settings
        shard = evaluate(
            sampler,
            prompts,
            rewards=judge(self.clients),
            oracle=oracle(settings.oracle),
            images_per_prompt=settings.images_per_prompt,
            seed=settings.seed,
            batch_size=settings.batch_size,
            diversity=settings.diversity,
            shard=(self.rank, self.world),
        )
        shards: list[Any] = [None] * self.world
        dist.all_gather_object(shards, shard)
        return merge(shards).summary()


def require_finite(generator: str, summary: Mapping[str, Any]) -> None:
    """Refuse an evaluation of pictures that are not finite.

    Raises:
        FloatingPointError: naming the generator as `generator` says.
    """
    if broken := summary["nonfinite_pictures"]:
        raise FloatingPointError(
            f"{generator} drew {broken} of {summary['pictures']} pictures that are not finite; its weights are lost or"
            " too large for their precision, and no reward is to blame"
        )


def held_out(settings: Evaluation) -> tuple[str, ...]:
    """Return the prompts of the evaluations."""
    return read_prompts(settings.prompts, settings.column)[: settings.num_prompts]


def kept_pictures(run_directory: Path, label: str) -> Tensor | None:
    """Return the grid's pictures of a run's full evaluation; None if there was none of this label."""
    path = run_directory / "evaluation" / f"{label}.pt"
    return torch.load(path, weights_only=True).float() / 255 if path.is_file() else None


def oracle(name: str | None) -> Judge:
    """Return the ground truth that the configuration names; without a name it says nothing."""
    if name is None:
        return lambda images, prompts: {}
    from slingstone.world.editions import EDITIONS

    return EDITIONS[name].oracle()


def judge(clients: Mapping[str, RewardClient]) -> Judge:
    """Return the scores of all rewards, which are at work at the same time, as a function that waits for them."""

    def scores(images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        pending = {name: client.submit_for_scores(images, prompts) for name, client in clients.items()}
        return {name: found.result() for name, found in pending.items()}

    return scores
