"""The rewards of a step: asked without waiting, normalised and summed; if they may be, dropped on all ranks together.

Nothing here knows where it runs: what ranks must agree on goes through a function that adds tensors over them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from reward_services.protocol import PendingReward
from slingstone.objectives.finite import cleaned, kept_mean
from slingstone.objectives.reward import Scored, weighted_reward


@dataclass(frozen=True)
class Scale:
    """`(r - mean) / std`; the gradient takes both as constants."""

    mean: float = 0.0
    std: float = 1.0


@dataclass(frozen=True)
class RunningScale:
    """The scale that the scores themselves have had lately, over all ranks, this step's included."""

    half_life_images: float


@dataclass(frozen=True)
class RewardTerm:
    """One reward model, its weight in the sum, and how to ask it without waiting."""

    name: str
    weight: float
    submit: Callable[[Tensor, Sequence[str]], PendingReward]
    scale: Scale | RunningScale = Scale()


@dataclass(frozen=True)
class Tolerance:
    """Which failures of a reward only cost it the step.

    Attributes:
        errors: these drop the reward on all ranks; any other one stops the run, and by default all do.
        in_a_row: so many steps in a row without the same reward stop the run.
    """

    errors: tuple[type[Exception], ...] = ()
    in_a_row: int = 1


class RewardsLost(RuntimeError):
    """A reward was dropped too often in a row."""


@dataclass(frozen=True)
class Judged:
    """What the rewards said.

    Attributes:
        gradient: d r_i / d image_i; None if there is no reward with a weight left.
        finite: samples whose sum and gradient are finite.
        metrics: means over the samples that were kept: score, norm of the picture's gradient, scaled score.
    """

    gradient: Float[Tensor, "batch 3 rows columns"] | None
    finite: Bool[Tensor, " batch"]
    metrics: dict[str, Tensor | float]


@dataclass
class _Moments:
    """Exponentially weighted sums of scores; half of what they hold is forgotten every `half_life_images`."""

    count: float = 0.0
    total: float = 0.0
    squares: float = 0.0

    def add(self, sums: Sequence[float], half_life_images: float) -> None:
        decay = 0.5 ** (sums[0] / half_life_images)
        self.count, self.total, self.squares = (
            decay * held + new for held, new in zip((self.count, self.total, self.squares), sums, strict=True)
        )

    def scale(self) -> Scale:
        if self.count == 0:
            return Scale()
        mean = self.total / self.count
        variance = self.squares / self.count - mean**2
        # Scores that do not vary have no scale of their own; dividing by rounding errors would invent one.
        return Scale(mean, math.sqrt(variance)) if variance > 1e-12 * mean**2 else Scale(mean)


@dataclass
class RewardPanel:
    """Judges the pictures of a step, one call of `submit` and one of `collect` each.

    Attributes:
        terms: the rewards; a weight of 0 measures one without training on it.
        tolerance: which failures do not stop the run.
        sum_over_ranks: adds a float64 CPU tensor over all ranks and returns the sum; every rank calls it alike.
    """

    terms: Sequence[RewardTerm] = ()
    tolerance: Tolerance = Tolerance()
    sum_over_ranks: Callable[[Tensor], Tensor] = lambda tensor: tensor
    _dropped: dict[str, int] = field(default_factory=dict)
    _in_a_row: dict[str, int] = field(default_factory=dict)
    _moments: dict[str, _Moments] = field(default_factory=dict)

    def submit(self, images: Float[Tensor, "batch 3 rows columns"], prompts: Sequence[str]) -> list[PendingReward]:
        """Send the pictures to every reward, without waiting."""
        return [term.submit(images, prompts) for term in self.terms]

    def collect(self, pending: Sequence[PendingReward], finite: Bool[Tensor, " batch"]) -> Judged:
        """Await the rewards and sum them; a collective if failures are tolerated or a scale runs.

        Args:
            pending: what `submit` returned.
            finite: samples still kept; the others count in no mean and no scale.

        Raises:
            RewardsLost: a reward was dropped too often in a row.
            Exception: whatever a reward raises that is not tolerated.
        """
        found = self._agreed(self._await(pending))
        scales = self._scales(found, finite)
        metrics: dict[str, Tensor | float] = {}
        for term, (score, gradient) in found:
            score, scale = score.to(finite.device), scales[term.name]
            kept, norm = finite & score.isfinite(), gradient.flatten(1).norm(dim=1).to(finite.device)
            metrics[f"reward/{term.name}"] = kept_mean(score, kept)
            metrics[f"grad_norm/reward/{term.name}"] = kept_mean(norm, kept & norm.isfinite())
            if term.scale != Scale():
                metrics[f"normalised/{term.name}"] = kept_mean((score - scale.mean) / scale.std, kept)
        if self.tolerance.errors:
            metrics |= {f"dropped/{term.name}": float(self._dropped.get(term.name, 0)) for term in self.terms}
        # A term of weight 0 is left out rather than multiplied: it only measures, and must not drop a sample.
        active = [(term.weight / scales[term.name].std, scored) for term, scored in found if term.weight]
        if not active:
            return Judged(None, finite, metrics)
        score, gradient = weighted_reward([weight for weight, _ in active], [scored for _, scored in active])
        gradient, unbroken = cleaned(gradient.to(finite.device))
        return Judged(gradient, unbroken & score.to(finite.device).isfinite(), metrics)

    def state_dict(self) -> dict[str, Any]:
        """Return the running scales and the counts of drops, the same on all ranks."""
        moments = {name: [held.count, held.total, held.squares] for name, held in self._moments.items()}
        return {"dropped": dict(self._dropped), "in_a_row": dict(self._in_a_row), "moments": moments}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; what a state does not hold starts afresh."""
        self._dropped, self._in_a_row = dict(state.get("dropped", {})), dict(state.get("in_a_row", {}))
        self._moments = {name: _Moments(*sums) for name, sums in state.get("moments", {}).items()}

    def _await(self, pending: Sequence[PendingReward]) -> list[Scored | Exception]:
        found: list[Scored | Exception] = []
        for reward in pending:
            try:
                found.append(reward.result())
            except self.tolerance.errors as error:
                found.append(error)
        return found

    def _agreed(self, found: Sequence[Scored | Exception]) -> list[tuple[RewardTerm, Scored]]:
        """Return the rewards that every rank has, and count the others."""
        pairs = list(zip(self.terms, found, strict=True))
        if self.tolerance.errors and pairs:
            failed = [float(isinstance(result, Exception)) for result in found]
            ranks = self.sum_over_ranks(torch.tensor(failed, dtype=torch.float64)).tolist()
            for (term, result), failures in zip(pairs, ranks, strict=True):
                self._in_a_row[term.name] = self._in_a_row.get(term.name, 0) + 1 if failures else 0
                self._dropped[term.name] = self._dropped.get(term.name, 0) + bool(failures)
                if self._in_a_row[term.name] >= self.tolerance.in_a_row:
                    times = f"failed in {self._in_a_row[term.name]} steps in a row"
                    reason = str(result) if isinstance(result, Exception) else f"on {failures:.0f} other ranks"
                    raise RewardsLost(f"reward {term.name!r} {times}, the last time: {reason}")
            pairs = [pair for pair, failures in zip(pairs, ranks, strict=True) if not failures]
        return [(term, result) for term, result in pairs if not isinstance(result, Exception)]

    def _scales(self, found: Sequence[tuple[RewardTerm, Scored]], finite: Bool[Tensor, " batch"]) -> dict[str, Scale]:
        """Return each reward's scale of this step, the running ones brought up to date."""
        running = [(term, score, term.scale) for term, (score, _) in found if isinstance(term.scale, RunningScale)]
        if running:
            sums = self.sum_over_ranks(torch.stack([_sums(score, finite) for _, score, _ in running]))
            for (term, _, scale), own in zip(running, sums.tolist(), strict=True):
                self._moments.setdefault(term.name, _Moments()).add(own, scale.half_life_images)
        return {
            term.name: term.scale if isinstance(term.scale, Scale) else self._moments[term.name].scale()
            for term, _ in found
        }


def _sums(score: Float[Tensor, " batch"], finite: Bool[Tensor, " batch"]) -> Float[Tensor, "3"]:
    """Return count, sum and sum of squares of the scores that are kept, in float64 on the CPU."""
    kept = score.detach().double()[(finite.to(score.device) & score.isfinite())].cpu()
    return torch.stack([torch.tensor(float(len(kept)), dtype=torch.float64), kept.sum(), kept.square().sum()])
