"""Requests that wait together are computed together."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np

logger = logging.getLogger(__name__)

Result = tuple[np.ndarray, ...]
"""Scores and what else was asked for, each with a row a picture."""
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

    def shares_a_pass_with(self, other: "_Request") -> bool:
        return self.compute == other.compute and self.images.shape[1:] == other.images.shape[1:]


@dataclass
class Batcher:
    """Groups concurrent requests into forward passes of at most `max_images` pictures of one size.

    While one pass is computed, arriving requests gather for the next. Not `ray.serve.batch`: it mixes sizes, refuses a
    request larger than a batch, lets one request fail its neighbours, and closes a batch when nothing is free.

    Attributes:
        compute: `(images, prompts)` to a result; runs in one thread of its own, never twice at once, so
            that the event loop keeps answering health checks.
        max_images: most pictures of one pass. A larger request is computed in several.
        wait_s: how long the first request of a pass waits for others while nothing is being computed.
        observe: is told of every pass that succeeded, after its requests are answered.
    """

    compute: Compute
    max_images: int
    wait_s: float = 0.0
    observe: Callable[[Pass], None] = lambda done: None
    _waiting: deque[_Request] = field(default_factory=deque)
    _thread: ThreadPoolExecutor = field(default_factory=partial(ThreadPoolExecutor, 1, "reward"))
    _worker: asyncio.Task[None] | None = None

    async def submit(self, images: np.ndarray, prompts: Sequence[str], compute: Compute | None = None) -> Result:
        """Return the result of one request, whatever it was batched with.

        Args:
            images: [batch, 3, height, width].
            prompts: one a picture.
            compute: another way to compute than usual; only requests of the same way share a pass.
        """
        loop = asyncio.get_running_loop()
        request = _Request(images, list(prompts), compute or self.compute, loop.create_future())
        self._waiting.append(request)
        if self._worker is None or self._worker.done():
            self._worker = loop.create_task(self._work())
        return await request.future

    async def alone(self, work: Callable[[], object]) -> None:
        """Do some work once in the same thread, after the pass under way and by itself."""
        await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def _work(self) -> None:
        """Compute until nobody waits."""
        await asyncio.sleep(self.wait_s)
        while self._waiting:
            batch = self._take()
            if batch:
                await self._run(batch)

    def _take(self) -> list[_Request]:
        """Remove the next requests of one way and size from the queue, dropping those whose caller has left."""
        batch: list[_Request] = []
        count = 0
        left: deque[_Request] = deque()
        for request in (request for request in self._waiting if not request.future.done()):
            fits = count + len(request.images) <= self.max_images
            if not batch or (fits and not left and request.shares_a_pass_with(batch[0])):
                batch.append(request)
                count += len(request.images)
            else:
                left.append(request)
        self._waiting = left
        return batch

    async def _run(self, batch: list[_Request]) -> None:
        """Give every request of the batch its answer, or an error: nothing may leave a caller waiting."""
        begun = time.monotonic()
        try:
            answers = await asyncio.get_running_loop().run_in_executor(self._thread, self._answers, batch)
        except Exception as error:
            if len(batch) > 1:  # one bad request must not fail those that happened to share its pass
                for request in batch:
                    await self._run([request])
            elif not batch[0].future.done():
                batch[0].future.set_exception(error)
            return
        for request, answer in zip(batch, answers, strict=True):
            if not request.future.done():
                request.future.set_result(answer)
        num_images, queued_s = sum(len(request.images) for request in batch), [begun - one.arrived for one in batch]
        try:
            self.observe(Pass(num_images, time.monotonic() - begun, tuple(queued_s)))
        except Exception:
            logger.exception("a pass of %d pictures could not be counted", num_images)

    def _answers(self, batch: list[_Request]) -> list[Result]:
        """Return what each request asked for, computed together in passes."""
        images = batch[0].images if len(batch) == 1 else np.concatenate([request.images for request in batch])
        prompts = [prompt for request in batch for prompt in request.prompts]
        passes = []
        for start in range(0, len(images), self.max_images):
            part = slice(start, start + self.max_images)
            passes.append(batch[0].compute(images[part], prompts[part]))
        parts = passes[0] if len(passes) == 1 else [np.concatenate(pieces) for pieces in zip(*passes, strict=True)]
        if {len(part) for part in parts} != {len(images)}:
            raise ValueError(f"the answer to {len(images)} pictures has {[len(part) for part in parts]} rows")
        ends = np.cumsum([len(request.images) for request in batch])[:-1]
        return list(zip(*(np.split(part, ends) for part in parts), strict=True))
