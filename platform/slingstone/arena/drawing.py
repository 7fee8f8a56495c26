"""Serve's replicas that draw, and the one that judges."""

import asyncio
import io
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from ray import serve

from slingstone.arena.gallery import Drawn, Identity
from slingstone.arena.pairs import Asked
from slingstone.compare.contents import digest
from slingstone.compare.evaluator import load_sampler
from slingstone.compare.shards import contents_of
from slingstone.config import Rewards
from slingstone.config.arena import Drawers
from slingstone.config.comparison import Model, Stock
from slingstone.evaluation.grids import from_picture, to_picture
from slingstone.networks.sampling import Sampler
from slingstone.worker.measure import judge
from slingstone.worker.rewards import clients

WARM_UP = "a picture"


def identity(entry: Model) -> Identity:
    """Return a generator's identity; `weights` is a digest of its files and settings, wherever they lie."""
    weights = digest(contents_of(entry))
    if isinstance(entry, Stock):
        return Identity(weights, entry.steps, entry.scheduler or "pipeline")
    return Identity(weights, 1, "one_step")


class Drawer:
    """A replica that draws with one generator, or with any of several of which it keeps the last used in memory.

    Args:
        entries: the generators.
        settings: batches, threads, device.
    """

    def __init__(self, entries: Sequence[Model], settings: Drawers) -> None:
        torch.set_num_threads(max(1, round(settings.num_cpus)))
        self._entries = {entry.name: entry for entry in entries}
        self._device = torch.device("cuda" if settings.num_gpus else "cpu")
        self._own: dict[str, Sampler] = {}

        async def load(name: str) -> Sampler:
            return await asyncio.to_thread(load_sampler, self._entries[name], self._device)

        keeping: Any = serve.multiplexed(max_num_models_per_replica=settings.resident or 1)
        self._load: Callable[[str], Awaitable[Sampler]] = keeping(load)
        together = serve.batch(max_batch_size=settings.max_batch, batch_wait_timeout_s=settings.batch_wait_s)
        self._batched: Callable[[Asked], Awaitable[Drawn]] = together(self._draw)
        if len(self._entries) == 1:
            (name,) = self._entries
            self._own = {name: load_sampler(self._entries[name], self._device)}
            self._own[name]([WARM_UP], [0])  # what is compiled or allocated at first use is so before a person waits

    async def draw(self, asked: Asked) -> Drawn:
        """Return a picture; requests that come during a pass share the next one."""
        return await self._batched(asked)

    async def _draw(self, asked: list[Asked]) -> list[Drawn]:
        found: dict[int, Drawn] = {}
        places: dict[str, list[int]] = defaultdict(list)
        for place, one in enumerate(asked):
            places[one.model].append(place)
        for name, those in places.items():
            sampler = self._own.get(name) or await self._load(name)
            drawn = await asyncio.to_thread(_pictures, sampler, [asked[place] for place in those])
            found |= dict(zip(those, drawn, strict=True))
        return [found[place] for place in range(len(asked))]


class Judge:
    """A replica that scores pictures as people see them: 8 bits a channel."""

    def __init__(self, rewards: Rewards) -> None:
        self._judge = judge(clients(rewards, torch.device("cpu")))

    async def score(self, png: bytes, prompt: str) -> Mapping[str, float]:
        """Return the score of each reward."""
        return await asyncio.to_thread(self._score, png, prompt)

    def _score(self, png: bytes, prompt: str) -> Mapping[str, float]:
        images = from_picture(Image.open(io.BytesIO(png)))[None]
        return {name: float(scores[0]) for name, scores in self._judge(images, [prompt]).items()}


def actor_options(settings: Drawers, entries: Sequence[Model]) -> dict[str, Any]:
    """Return what Serve must be told of a drawer."""
    replicas: dict[str, Any] = {"num_replicas": settings.num_replicas}
    if settings.max_replicas is not None:
        most = max(settings.num_replicas, settings.max_replicas)
        replicas = {"autoscaling_config": {"min_replicas": settings.num_replicas, "max_replicas": most}}
    return replicas | {
        "name": f"generator-{entries[0].name}" if len(entries) == 1 else "generators",
        "ray_actor_options": {"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus},
        "max_ongoing_requests": 2 * settings.max_batch,
        "max_queued_requests": settings.max_queued,
        "max_constructor_retry_count": 1,  # a wrong checkpoint stays wrong
    }


def _pictures(sampler: Sampler, asked: Sequence[Asked]) -> list[Drawn]:
    pictures = sampler([one.prompt for one in asked], [one.seed for one in asked])
    seconds = pictures.seconds / len(asked)
    return [Drawn(_png(to_picture(image)), seconds, pictures.network_evaluations) for image in pictures.images]


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
