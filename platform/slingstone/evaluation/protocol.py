"""Prompts to pictures to a table of scores that depends on neither order nor number of workers."""

import hashlib
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from slingstone.evaluation.appearance import MEASURES
from slingstone.evaluation.diversity import distance_named, mean_distances
from slingstone.networks.sampling import Pictures, Sampler

Judge = Callable[[Float[Tensor, "batch 3 rows columns"], Sequence[str]], Mapping[str, Float[Tensor, " batch"]]]
"""`(images, prompts) -> scores` under several names, a number a picture.

Of an oracle it is NaN where a question does not apply to a picture; of rewards it is always finite.
"""


@dataclass(frozen=True)
class Statistic:
    """Mean over the pictures to which the number applies, None if there is none.

    `standard_error` is that of the mean over prompts, None below two of them: pictures of one prompt resemble each
    other, so that prompts, not pictures, are the independent draws.
    """

    mean: float | None
    standard_error: float | None


@dataclass(frozen=True)
class Row:
    """One picture: its prompt, which of the prompt's pictures it is, the seed of its noise, and all its numbers.

    A value is None where the question does not apply to the picture.
    """

    prompt: str
    replica: int
    seed: int
    values: dict[str, float | None]


@dataclass(frozen=True)
class Evaluation:
    """The rows of an evaluation or of one shard of it, in the order of prompt and replica.

    Attributes:
        rows: one a picture. Values are named `rewards/<name>`, as the oracle names them, `appearance/<name>`,
            `diversity` (with several pictures a prompt), `seconds_per_image` and `network_evaluations`.
        total: number of pictures of the whole evaluation, of which this may be a shard.
        diversity: name of the distance.
    """

    rows: tuple[Row, ...]
    total: int
    diversity: str

    @property
    def metrics(self) -> dict[str, Statistic]:
        """Mean and standard error of every value."""
        names = self.rows[0].values if self.rows else ()
        return {name: self._statistic(name) for name in names}

    def summary(self) -> dict[str, Any]:
        """Return the means, the rewards' apart, with how many pictures they are of and the standard errors."""
        metrics = self.metrics
        means = {name: metric.mean for name, metric in metrics.items()}
        prefix = "rewards/"
        return {
            "rewards": {name.removeprefix(prefix): mean for name, mean in means.items() if name.startswith(prefix)},
            **{name: mean for name, mean in means.items() if not name.startswith(prefix)},
            "pictures": len(self.rows),
            "prompts": len({row.prompt for row in self.rows}),
            "diversity_distance": self.diversity,
            "standard_errors": {name: metric.standard_error for name, metric in metrics.items()},
        }

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "Evaluation":
        """Return what `to_dict` was called on."""
        return cls(tuple(Row(**row) for row in plain["rows"]), plain["total"], plain["diversity"])

    def of(self, prompts: Collection[str]) -> "Evaluation":
        """Return the part that these prompts make up."""
        rows = tuple(row for row in self.rows if row.prompt in prompts)
        return Evaluation(rows, len(rows), self.diversity)

    def _statistic(self, name: str) -> Statistic:
        by_prompt: dict[str, list[float]] = defaultdict(list)
        for row in self.rows:
            if (value := row.values[name]) is not None:
                by_prompt[row.prompt].append(value)
        if not by_prompt:
            return Statistic(None, None)
        # fmean sums without rounding, so that no order of addition shows in the last digit.
        means = [statistics.fmean(values) for values in by_prompt.values()]
        error = statistics.stdev(means) / math.sqrt(len(means)) if len(means) > 1 else None
        return Statistic(statistics.fmean(chain.from_iterable(by_prompt.values())), error)


def evaluate(
    sampler: Sampler,
    prompts: Sequence[str],
    *,
    rewards: Judge = lambda images, prompts: {},
    oracle: Judge = lambda images, prompts: {},
    images_per_prompt: int = 1,
    seed: int = 0,
    batch_size: int = 32,
    diversity: str = "coarse_pixel_rms",
    shard: tuple[int, int] = (0, 1),
    see: Callable[[Float[Tensor, "batch 3 rows columns"]], None] = lambda images: None,
) -> Evaluation:
    """Sample pictures of every prompt and score them.

    The prompts are sorted, repetitions dropped, and cut into batches before the shards take their turns: a batch has
    the same composition whatever the order of the prompts and the number of shards, and so the same numbers to the
    digit. Another `batch_size` moves them by rounding only, since seeds belong to pictures, not to batches.

    Args:
        sampler: what is evaluated. It draws one picture beforehand, so that no start-up is timed.
        prompts: what to sample.
        rewards: all rewards at once, by name.
        oracle: the ground truth, where there is one.
        images_per_prompt: two or more also measure diversity.
        seed: of the whole evaluation.
        batch_size: pictures sampled and scored at a time.
        diversity: distance between pictures of one prompt, see `slingstone.evaluation.diversity`.
        shard: (rank, world), the part to evaluate; `merge` puts all parts together.
        see: shown the pictures of each batch, in the order of the rows.

    Raises:
        ValueError: if there is nothing to sample, or an argument is impossible.
        RuntimeError: if a reward is not finite: a failed one is never a number.
    """
    rank, world = shard
    if not prompts or images_per_prompt < 1 or batch_size < 1 or not 0 <= rank < world:
        raise ValueError(
            f"cannot evaluate {len(prompts)} prompts with images_per_prompt {images_per_prompt} and batch_size "
            f"{batch_size} as shard {rank} of {world}; all must be positive, and the shard's number below their count"
        )
    distance = distance_named(diversity) if images_per_prompt > 1 else None
    distinct = sorted(set(prompts))
    size = max(1, batch_size // images_per_prompt)
    groups = [distinct[start : start + size] for start in range(0, len(distinct), size)][rank::world]
    rows: list[Row] = []
    for group in groups:
        made = [
            Row(text, replica, picture_seed(text, replica, seed), {})
            for text in group
            for replica in range(images_per_prompt)
        ]
        batches = [made[start : start + batch_size] for start in range(0, len(made), batch_size)]
        if not rows:
            _sample(sampler, batches[0][:1])
        images = []
        for batch in batches:
            images.append(_measure(sampler, batch, rewards, oracle))
            see(images[-1])
        if distance:
            by_prompt = torch.cat(images).split(images_per_prompt)
            _fill(made, "diversity", torch.cat([mean_distances(own, distance) for own in by_prompt]))
        rows.extend(made)
    return Evaluation(tuple(rows), len(distinct) * images_per_prompt, diversity)


def merge(shards: Sequence[Evaluation]) -> Evaluation:
    """Return the evaluation whose shards these are, in any order.

    Raises:
        ValueError: if they are not all the shards of one evaluation.
    """
    rows = sorted((row for shard in shards for row in shard.rows), key=lambda row: (row.prompt, row.replica))
    kinds = {(shard.total, shard.diversity) for shard in shards}
    columns = {tuple(row.values) for row in rows}
    distinct = len({(row.prompt, row.replica) for row in rows})
    if len(kinds) != 1 or len(columns) != 1:
        raise ValueError(f"the {len(shards)} shards are not of one evaluation: their totals or scores differ")
    total, diversity = kinds.pop()
    if not len(rows) == distinct == total:
        raise ValueError(f"{len(rows)} pictures, {distinct} of them distinct, where the evaluation has {total}")
    return Evaluation(tuple(rows), total, diversity)


def picture_seed(prompt: str, replica: int, seed: int) -> int:
    """Return the seed of a picture's noise, a hash of what the picture is: the same in every order and process."""
    digest = hashlib.sha256(f"{seed}/{replica}/{prompt}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _sample(sampler: Sampler, batch: Sequence[Row]) -> Pictures:
    return sampler([row.prompt for row in batch], [row.seed for row in batch])


def _measure(
    sampler: Sampler, batch: Sequence[Row], rewards: Judge, oracle: Judge
) -> Float[Tensor, "batch 3 rows columns"]:
    """Return the pictures of a batch; give its rows all numbers that belong to one picture alone."""
    prompts = [row.prompt for row in batch]
    pictures = _sample(sampler, batch)
    for name, scores in rewards(pictures.images, prompts).items():
        if len(scores) != len(batch) or not scores.isfinite().all():
            raise RuntimeError(f"reward {name} gave {scores.tolist()} for {len(batch)} pictures of {prompts}")
        _fill(batch, f"rewards/{name}", scores)
    for name, scores in oracle(pictures.images, prompts).items():
        _fill(batch, name, scores)
    for name, measure in MEASURES.items():
        _fill(batch, name, measure(pictures.images))
    for row in batch:
        row.values["seconds_per_image"] = pictures.seconds / len(batch)
        row.values["network_evaluations"] = float(pictures.network_evaluations)
    return pictures.images


def _fill(rows: Sequence[Row], name: str, values: Float[Tensor, " batch"]) -> None:
    """Give each row its value; NaN, where a question does not apply, becomes None."""
    for row, value in zip(rows, values.tolist(), strict=True):
        row.values[name] = None if math.isnan(value) else value
