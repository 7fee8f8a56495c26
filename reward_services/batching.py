"""Requests that wait together are computed together."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

Result = tuple[np.ndarray, np.ndarray]
Compute = Callable[[np.ndarray, list[str]], Result]


@dataclass(frozen=True)
class Pass:
    """What was computed together.

    Attributes:
        num_images: pictures of all its requests; more than `max_images` of a single large one.
        compute_s: how long that took.
        queued_s: how long each request had waited before.
    """

    num_images: int
    compute_s: float
    queued_s: tuple[float, ...]


@dataclass
class _Request:
    images: np.ndarray
    prompts: list[str]
    compute: Compute
    future: asyncio.Future[Result]
    arrived: float = field(default_factory=time.monotonic)


class Batcher:
    """Groups concurrent requests into forward passes of at most `max_images` pictures of one size.

    While one pass is computed, arriving requests gather for the next; `ray.serve.batch` instead closes a batch when
    its wait is over even though nothing is free to compute it, and counts requests of any shape together.

    Args:
        compute: `(images, prompts) -> (scores, gradients)`; runs in one thread of its own, never twice at once, so
            that the event loop keeps answering health checks.
        max_images: most pictures of one pass. A larger request is computed in several.
        wait_s: how long the first request of a pass waits for others while nothing is being computed.
        observe: is told of every pass that succeeded.
    """

    def __init__(
        self,
        compute: Compute,
        max_images: int,
        wait_s: float = 0.0,
        observe: Callable[[Pass], None] = lambda done: None,
    ):
        self._compute = compute
        self._max_images = max_images
        self._wait_s = wait_s
        self._observe = observe
        self._waiting: deque[_Request] = deque()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reward")
        self._worker: asyncio.Task[None] | None = None

    async def submit(self, images: np.ndarray, prompts: Sequence[str], compute: Compute | None = None) -> Result:
        """Return the scores and gradients of one request, whatever it was batched with.

        Args:
            images: [batch, 3, height, width].
            prompts: one a picture.
            compute: another way to compute than usual; only requests of the same way share a pass.
        """
        loop = asyncio.get_running_loop()
        request = _Request(images, list(prompts), compute or self._compute, loop.create_future())
        self._waiting.append(request)
        if self._worker is None or self._worker.done():
            self._worker = loop.create_task(self._work())
        return await request.future

    async def alone(self, compute: Compute, images: np.ndarray, prompts: list[str]) -> Result:
        """Compute once in the same thread, after the pass under way and by itself."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, compute, images, prompts)

    async def _work(self) -> None:
        """Compute until nobody waits."""
        await asyncio.sleep(self._wait_s)
        while self._waiting:
            batch = self._take()
            if batch:
                await self._run(batch)

    def _take(self) -> list[_Request]:
        """Remove the next requests of one way and size from the queue, dropping those whose caller has left."""
        batch: list[_Request] = []
        count = 0
        left: deque[_Request] = deque()
        for request in self._waiting:
            if request.future.done():
                continue
            fits = count + len(request.images) <= self._max_images
            if not batch or (fits and not left and _alike(request, batch[0])):
                batch.append(request)
                count += len(request.images)
            else:
                left.append(request)
        self._waiting = left
        return batch

    async def _run(self, batch: list[_Request]) -> None:
        images = batch[0].images if len(batch) == 1 else np.concatenate([request.images for request in batch])
        prompts = [prompt for request in batch for prompt in request.prompts]
        begun = time.monotonic()
        try:
            scores, gradients = await asyncio.get_running_loop().run_in_executor(
                self._thread, self._in_passes, batch[0].compute, images, prompts
            )
        except Exception as error:
            if len(batch) > 1:  # one bad request must not fail those that happened to share its pass
                for request in batch:
                    await self._run([request])
            elif not batch[0].future.done():
                batch[0].future.set_exception(error)
            return
        queued_s = tuple(begun - request.arrived for request in batch)
        self._observe(Pass(len(images), time.monotonic() - begun, queued_s))
        start = 0
        for request in batch:
            end = start + len(request.images)
            if not request.future.done():
                request.future.set_result((scores[start:end], gradients[start:end]))
            start = end

    def _in_passes(self, compute: Compute, images: np.ndarray, prompts: list[str]) -> Result:
        starts = range(0, len(images), self._max_images)
        passes = [
            compute(images[start : start + self._max_images], prompts[start : start + self._max_images])
            for start in starts
        ]
        if len(passes) == 1:
            return passes[0]
        return np.concatenate([scores for scores, _ in passes]), np.concatenate([gradient for _, gradient in passes])


def _alike(one: _Request, other: _Request) -> bool:
    return one.compute == other.compute and one.images.shape[1:] == other.images.shape[1:]
