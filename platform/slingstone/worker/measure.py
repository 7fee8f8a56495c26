"""Evaluations inside the Train workers: split over the ranks, the same code during and after training."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from PIL.Image import Image
from torch import Tensor, nn

from reward_services.client import RewardClient
from slingstone.config import Evaluation
from slingstone.evaluation.grids import first_pictures, prompt_grid
from slingstone.evaluation.protocol import Oracle, Scorer, evaluate, merge
from slingstone.networks.protocol import ModelFamily
from slingstone.networks.sampling import Sampler, one_step_sampler, reference_sampler
from slingstone.prompts.files import read_prompts

SHORT = 8
"""An evaluation during training takes every so many-th part of the prompts."""


@dataclass(frozen=True)
class Measure:
    """The evaluation of one run on one rank; results and grid pictures are kept under `directory` by rank 0."""

    settings: Evaluation
    family: ModelFamily
    clients: Mapping[str, RewardClient]
    directory: Path
    rank: int
    world: int

    def initial(self, generator: nn.Module) -> dict[str, Any]:
        """Evaluate the generator as it was loaded, or read back what was found before a restart; a collective."""
        return self._known("init") or self._full("init", one_step_sampler(self.family, generator))

    def aligned(self, generator: nn.Module) -> dict[str, Any]:
        """Evaluate the averaged generator in full; a collective."""
        return self._full("aligned", one_step_sampler(self.family, generator))

    def reference(self, label: str) -> dict[str, Any]:
        """Evaluate the many-step rival in full, or read back what was found before; a collective."""
        assert self.settings.reference is not None
        steps, guidance = self.settings.reference.steps, self.settings.reference.guidance
        return self._known(label) or self._full(label, reference_sampler(self.family, steps, guidance))

    def initial_short(self, generator: nn.Module) -> dict[str, Any]:
        """Return what `short` finds of the initial generator, read back if it is known; a collective."""
        if known := self._known("init_short"):
            return known
        found = self.short(generator)
        if self.rank == 0:
            self._write("init_short", found)
        return found

    def short(self, generator: nn.Module) -> dict[str, Any]:
        """Evaluate a one-step generator on a part of the prompts; a collective."""
        count = max(1, self.settings.num_prompts // SHORT)
        return self._evaluate(one_step_sampler(self.family, generator), self.prompts[:count])

    def grid(self, labels: Mapping[str, str]) -> Image:
        """Return the prompt grid from the pictures that full evaluations kept; keys are labels, values are titles."""
        columns = {title: self._kept(label) for label, title in labels.items()}
        return prompt_grid(columns, self.prompts[: self.settings.grid_prompts])

    def grid_now(self, title: str, generator: nn.Module) -> Image:
        """Return the prompt grid of a generator beside the initial one."""
        now = self._columns(one_step_sampler(self.family, generator))
        return prompt_grid({"init": self._kept("init"), title: now}, self.prompts[: self.settings.grid_prompts])

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts of a full evaluation."""
        return read_prompts(self.settings.prompts, self.settings.column)[: self.settings.num_prompts]

    def _known(self, label: str) -> dict[str, Any]:
        path = self.directory / f"{label}.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    def _full(self, label: str, sampler: Sampler) -> dict[str, Any]:
        summary = self._evaluate(sampler, self.prompts)
        if self.rank == 0:
            self.directory.mkdir(parents=True, exist_ok=True)
            torch.save((self._columns(sampler) * 255).round().to(torch.uint8), self.directory / f"{label}.pt")
            self._write(label, summary)
        return summary

    def _write(self, label: str, summary: dict[str, Any]) -> None:
        (self.directory / f"{label}.json").write_text(json.dumps(summary, indent=1))

    def _columns(self, sampler: Sampler) -> Tensor:
        prompts = self.prompts[: self.settings.grid_prompts]
        return first_pictures(sampler, prompts, self.settings.seed).cpu()

    def _kept(self, label: str) -> Tensor:
        found = kept_pictures(self.directory.parent, label)
        assert found is not None
        return found

    def _evaluate(self, sampler: Sampler, prompts: tuple[str, ...]) -> dict[str, Any]:
        settings = self.settings
        shard = evaluate(
            sampler,
            prompts,
            rewards={name: scorer(client) for name, client in self.clients.items()},
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


def kept_pictures(run_directory: Path, label: str) -> Tensor | None:
    """Return the pictures that a run's full evaluation kept for its grid; None if there was none of this label."""
    path = run_directory / "evaluation" / f"{label}.pt"
    return torch.load(path, weights_only=True).float() / 255 if path.is_file() else None


def oracle(name: str | None) -> Oracle | None:
    """Return the ground truth that the configuration names."""
    if name is None:
        return None
    from slingstone.world.oracle import Oracle as Scenes

    return Scenes()


def scorer(client: RewardClient) -> Scorer:
    """Return the scores of a reward as a function that waits for them."""

    def score(images: Tensor, prompts: Any) -> Tensor:
        scores, _ = client.submit(images, prompts).result()
        return scores

    return score
