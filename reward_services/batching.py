"""Requests that wait together are computed together."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

Result = tuple[np.ndarray, np.ndarray]


@dataclass
class _Request:
    images: np.ndarray
    prompts: list[str]
    future: asyncio.Future[Result]


class Batcher:
    """Groups concurrent requests into forward passes of at most `max_images` pictures of one size.

    While one pass is computed, arriving requests gather for the next; `ray.serve.batch` instead closes a batch when
    its wait is over even though nothing is free to compute it, and counts requests of any shape together.

    Args:
        compute: `(images, prompts) -> (scores, gradients)`; runs in one thread of its own, never twice at once, so
            that the event loop keeps answering health checks.
        max_images: most pictures of one pass. A larger request is computed in several.
        wait_s: how long the first request of a pass waits for others while nothing is being computed.
    """

    def __init__(self, compute: Callable[[np.ndarray, list[str]], Result], max_images: int, wait_s: float = 0.0):
        self._compute = compute
        self._max_images = max_images
        self._wait_s = wait_s
        self._waiting: deque[_Request] = deque()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reward")
        self._worker: asyncio.Task[None] | None = None

    async def submit(self, images: np.ndarray, prompts: Sequence[str]) -> Result:
        """Return the scores and gradients of one request, whatever it was batched with."""
        loop = asyncio.get_running_loop()
        request = _Request(images, list(prompts), loop.create_future())
        self._waiting.append(request)
        if self._worker is None or self._worker.done():
            self._worker = loop.create_task(self._work())
        return await request.future

    async def _work(self) -> None:
        """Compute until nobody waits."""
        await asyncio.sleep(self._wait_s)
        while self._waiting:
            batch = self._take()
            if batch:
                await self._run(batch)

    def _take(self) -> list[_Request]:
        """Remove the next requests of one picture size from the queue, dropping those whose caller has left."""
        batch: list[_Request] = []
        count = 0
        left: deque[_Request] = deque()
        for request in self._waiting:
            if request.future.done():
                continue
            fits = count + len(request.images) <= self._max_images
            if not batch or (fits and not left and request.images.shape[1:] == batch[0].images.shape[1:]):
                batch.append(request)
                count += len(request.images)
            else:
                left.append(request)
        self._waiting = left
        return batch

    async def _run(self, batch: list[_Request]) -> None:
        images = batch[0].images if len(batch) == 1 else np.concatenate([request.images for request in batch])
        prompts = [prompt for request in batch for prompt in request.prompts]
        try:
            scores, gradients = await asyncio.get_running_loop().run_in_executor(
                self._thread, self._in_passes, images, prompts
            )
        except Exception as error:
            if len(batch) > 1:  # one bad request must not fail those that happened to share its pass
                for request in batch:
                    await self._run([request])
            elif not batch[0].future.done():
                batch[0].future.set_exception(error)
            return
        start = 0
        for request in batch:
            end = start + len(request.images)
            if not request.future.done():
                request.future.set_result((scores[start:end], gradients[start:end]))
            start = end

    def _in_passes(self, images: np.ndarray, prompts: list[str]) -> Result:
        starts = range(0, len(images), self._max_images)
        passes = [
            self._compute(images[start : start + self._max_images], prompts[start : start + self._max_images])
            for start in starts
        ]
        if len(passes) == 1:
            return passes[0]
        return np.concatenate([scores for scores, _ in passes]), np.concatenate([gradient for _, gradient in passes])
