"""Prompts to pictures to a table of scores that depends on neither order nor number of workers."""

import hashlib
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from slingstone.evaluation.appearance import MEASURES
from slingstone.evaluation.diversity import Distance, distance_named, mean_distances
from slingstone.networks.sampling import Pictures, Sampler

Scorer = Callable[[Float[Tensor, "batch 3 rows columns"], Sequence[str]], Float[Tensor, " batch"]]
"""`(images, prompts) -> scores`, a number a picture."""

Oracle = Callable[[Float[Tensor, "batch 3 rows columns"], Sequence[str]], Mapping[str, Float[Tensor, " batch"]]]
"""`(images, prompts) -> scores` under several names; NaN where a question does not apply to a picture."""


class Place(NamedTuple):
    """A picture to be made."""

    prompt: str
    replica: int
    seed: int


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
        # Sums without rounding, so that no order of addition shows in the last digit.
        means = [math.fsum(values) / len(values) for values in by_prompt.values()]
        error = statistics.stdev(means) / math.sqrt(len(means)) if len(means) > 1 else None
        every = [value for values in by_prompt.values() for value in values]
        return Statistic(math.fsum(every) / len(every), error)


def evaluate(
    sampler: Sampler,
    prompts: Sequence[str],
    *,
    rewards: Mapping[str, Scorer],
    oracle: Oracle | None = None,
    images_per_prompt: int = 1,
    seed: int = 0,
    batch_size: int = 32,
    diversity: str = "coarse_pixel_rms",
    shard: tuple[int, int] = (0, 1),
    progress: Callable[[int], None] = lambda pictures: None,
    see: Callable[[Float[Tensor, "batch 3 rows columns"]], None] = lambda images: None,
) -> Evaluation:
    """Sample pictures of every prompt and score them.

    The prompts are sorted, repetitions dropped, and cut into batches before the shards take their turns: a batch has
    the same composition whatever the order of the prompts and the number of shards, and so the same numbers to the
    digit. Another `batch_size` moves them by rounding only, since seeds belong to pictures, not to batches.

    Args:
        sampler: what is evaluated. Its first batch is sampled once more beforehand, so that no start-up is timed.
        prompts: what to sample.
        rewards: reward models by name.
        oracle: the ground truth, where there is one.
        images_per_prompt: pictures a prompt; two or more also measure diversity.
        seed: of the whole evaluation.
        batch_size: pictures sampled and scored at a time.
        diversity: distance between pictures of one prompt, see `slingstone.evaluation.diversity`.
        shard: (rank, world), the part to evaluate; `merge` puts all parts together.
        progress: told the number of pictures after each batch.
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
        places = [
            Place(text, replica, picture_seed(text, replica, seed))
            for text in group
            for replica in range(images_per_prompt)
        ]
        batches = [places[start : start + batch_size] for start in range(0, len(places), batch_size)]
        if not rows:
            _sample(sampler, batches[0])
        measured = []
        for batch in batches:
            measured.append(_measure(sampler, batch, rewards, oracle))
            see(measured[-1][0])
            progress(len(batch))
        rows.extend(_rows(places, measured, images_per_prompt, distance))
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


def _sample(sampler: Sampler, batch: Sequence[Place]) -> Pictures:
    return sampler([place.prompt for place in batch], [place.seed for place in batch])


def _measure(
    sampler: Sampler, batch: Sequence[Place], rewards: Mapping[str, Scorer], oracle: Oracle | None
) -> tuple[Float[Tensor, "batch 3 rows columns"], dict[str, list[float | None]]]:
    """Return the pictures of a batch, and columns of all numbers that belong to one picture alone."""
    prompts = [place.prompt for place in batch]
    pictures = _sample(sampler, batch)
    columns: dict[str, list[float | None]] = {}
    for name, reward in rewards.items():
        scores = reward(pictures.images, prompts).tolist()
        if len(scores) != len(batch) or not all(map(math.isfinite, scores)):
            raise RuntimeError(f"reward {name} gave {scores} for {len(batch)} pictures of {prompts}")
        columns[f"rewards/{name}"] = scores
    for name, scores in (oracle(pictures.images, prompts) if oracle else {}).items():
        columns[name] = [None if math.isnan(score) else score for score in scores.tolist()]
    for name, measure in MEASURES.items():
        columns[name] = measure(pictures.images).tolist()
    columns["seconds_per_image"] = [pictures.seconds / len(batch)] * len(batch)
    columns["network_evaluations"] = [float(pictures.network_evaluations)] * len(batch)
    return pictures.images, columns


def _rows(
    places: Sequence[Place],
    measured: Sequence[tuple[Float[Tensor, "_ 3 rows columns"], dict[str, list[float | None]]]],
    images_per_prompt: int,
    distance: Distance | None,
) -> Iterator[Row]:
    """Turn the columns of consecutive batches, all pictures of some prompts, into rows, diversity included."""
    columns = {name: [value for _, part in measured for value in part[name]] for name in measured[0][1]}
    if distance:
        prompts = torch.cat([images for images, _ in measured]).split(images_per_prompt)
        columns["diversity"] = [value for images in prompts for value in mean_distances(images, distance).tolist()]
    for place, values in zip(places, zip(*columns.values(), strict=True), strict=True):
        yield Row(place.prompt, place.replica, place.seed, dict(zip(columns, values, strict=True)))
