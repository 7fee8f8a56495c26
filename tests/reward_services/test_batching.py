import asyncio
import threading
import time
from dataclasses import dataclass, field

import numpy as np
import pytest

from reward_services.batching import Batcher, Compute, Pass, Result


@dataclass
class Recorder:
    """Scores a picture by its mean; remembers what each pass held; can be held shut."""

    passes: list[list[str]] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    threads: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.gate.set()

    def __call__(self, images: np.ndarray, prompts: list[str]) -> Result:
        self.threads.add(threading.get_ident())
        self.passes.append(prompts)
        self.gate.wait(5)
        if "bad" in prompts:
            raise ArithmeticError("bad prompt")
        return images.mean(axis=(1, 2, 3)), images * 2


def _images(*values: float, size: int = 4) -> np.ndarray:
    return np.stack([np.full((3, size, size), value, dtype=np.float32) for value in values])


async def _while_busy(batcher: Batcher, recorder: Recorder, *requests: tuple[np.ndarray, list[str]]) -> list:
    """Send requests while the first pass is held, so that they wait together."""
    recorder.gate.clear()
    first = asyncio.create_task(batcher.submit(_images(0.0), ["first"]))
    while not recorder.passes:
        await asyncio.sleep(0.001)
    tasks = [asyncio.create_task(batcher.submit(*request)) for request in requests]
    await asyncio.sleep(0.01)
    recorder.gate.set()
    await first
    return await asyncio.gather(*tasks, return_exceptions=True)


def test_requests_that_wait_together_are_computed_together_and_split_again():
    recorder = Recorder()
    batcher = Batcher(recorder, max_images=8)
    answers = asyncio.run(
        _while_busy(batcher, recorder, (_images(0.1, 0.2), ["a", "b"]), (_images(0.3), ["c"]), (_images(0.4), ["d"]))
    )
    assert recorder.passes == [["first"], ["a", "b", "c", "d"]]
    for (scores, gradients), values in zip(answers, ([0.1, 0.2], [0.3], [0.4]), strict=True):
        np.testing.assert_allclose(scores, values, rtol=1e-6)
        np.testing.assert_allclose(gradients[:, 0, 0, 0], 2 * np.array(values), rtol=1e-6)


def test_a_pass_holds_at_most_max_images_and_keeps_the_order_of_arrival():
    recorder = Recorder()
    batcher = Batcher(recorder, max_images=3)
    requests = [(_images(0.1, 0.1), ["a", "a"]), (_images(0.2, 0.2), ["b", "b"]), (_images(0.3), ["c"])]
    asyncio.run(_while_busy(batcher, recorder, *requests))
    assert recorder.passes == [["first"], ["a", "a"], ["b", "b", "c"]]


def test_a_request_larger_than_a_pass_is_computed_in_several():
    recorder = Recorder()
    values = [index / 10 for index in range(7)]
    scores, gradients = asyncio.run(Batcher(recorder, max_images=3).submit(_images(*values), [str(v) for v in values]))
    assert [len(prompts) for prompts in recorder.passes] == [3, 3, 1]
    np.testing.assert_allclose(scores, values, rtol=1e-6)
    assert gradients.shape == (7, 3, 4, 4)


def test_pictures_of_another_size_wait_for_the_next_pass():
    recorder = Recorder()
    batcher = Batcher(recorder, max_images=8)
    requests = [(_images(0.1), ["a"]), (_images(0.2, size=6), ["large"]), (_images(0.3), ["c"])]
    answers = asyncio.run(_while_busy(batcher, recorder, *requests))
    assert recorder.passes == [["first"], ["a"], ["large"], ["c"]]
    assert [answer[1].shape[-1] for answer in answers] == [4, 6, 4]


def test_a_request_that_fails_does_not_fail_those_it_shared_a_pass_with():
    recorder = Recorder()
    batcher = Batcher(recorder, max_images=8)
    requests = [(_images(0.1), ["a"]), (_images(0.2), ["bad"]), (_images(0.3), ["c"])]
    good, bad, other = asyncio.run(_while_busy(batcher, recorder, *requests))
    assert isinstance(bad, ArithmeticError)
    np.testing.assert_allclose([good[0][0], other[0][0]], [0.1, 0.3], rtol=1e-6)


def _fewer(images: np.ndarray, prompts: list[str]) -> Result:
    scores, gradients = Recorder()(images, prompts)
    return scores[1:], gradients


def _mean(images: np.ndarray, prompts: list[str]) -> Result:
    return images.mean(), images


@pytest.mark.parametrize("compute", [_fewer, _mean])
def test_an_answer_of_another_length_is_an_error_for_every_caller_and_later_ones_are_answered(compute: Compute):
    async def scenario() -> list[object]:
        batcher = Batcher(compute, max_images=2, wait_s=0.01)
        together = [batcher.submit(_images(0.1, 0.2), ["a", "b"]), batcher.submit(_images(0.3), ["c"])]
        failed = await asyncio.wait_for(asyncio.gather(*together, return_exceptions=True), 5)
        batcher.compute = Recorder()
        return [*failed, await asyncio.wait_for(batcher.submit(_images(0.5), ["d"]), 5)]

    *failed, (scores, _) = asyncio.run(scenario())
    assert all(isinstance(error, Exception) for error in failed)
    np.testing.assert_allclose(scores, [0.5])


def test_pictures_that_cannot_be_joined_are_an_error_for_their_own_caller_alone():
    class Torn(np.ndarray):
        def __array_function__(self, *_: object) -> None:
            raise MemoryError("cannot be joined")

    recorder = Recorder()
    batcher = Batcher(recorder, max_images=8)
    requests = [(_images(0.1), ["a"]), (_images(0.2).view(Torn), ["torn"]), (_images(0.3), ["c"])]
    good, _, other = asyncio.run(asyncio.wait_for(_while_busy(batcher, recorder, *requests), 5))
    np.testing.assert_allclose([good[0][0], other[0][0]], [0.1, 0.3], rtol=1e-6)


def test_a_pass_that_cannot_be_counted_is_answered_and_so_are_those_behind_it(caplog: pytest.LogCaptureFixture):
    def broken(done: Pass) -> None:
        raise OSError("no metrics today")

    recorder = Recorder()
    batcher = Batcher(recorder, max_images=1, observe=broken)
    requests = [(_images(0.1), ["a"]), (_images(0.2), ["b"])]
    answers = asyncio.run(asyncio.wait_for(_while_busy(batcher, recorder, *requests), 5))
    np.testing.assert_allclose([scores[0] for scores, _ in answers], [0.1, 0.2], rtol=1e-6)
    assert caplog.text.count("a pass of 1 pictures could not be counted") == 3


def test_a_caller_that_left_is_not_computed_for():
    recorder = Recorder()
    batcher = Batcher(recorder, max_images=8)

    async def scenario() -> None:
        recorder.gate.clear()
        first = asyncio.create_task(batcher.submit(_images(0.0), ["first"]))
        while not recorder.passes:
            await asyncio.sleep(0.001)
        leaving = asyncio.create_task(batcher.submit(_images(0.1), ["leaves"]))
        staying = asyncio.create_task(batcher.submit(_images(0.2), ["stays"]))
        await asyncio.sleep(0.01)
        leaving.cancel()
        recorder.gate.set()
        await asyncio.gather(first, staying)
        with pytest.raises(asyncio.CancelledError):
            await leaving

    asyncio.run(scenario())
    assert recorder.passes == [["first"], ["stays"]]


def test_an_idle_batcher_waits_for_company_only_if_told_to():
    async def together(wait_s: float) -> list[list[str]]:
        recorder = Recorder()
        batcher = Batcher(recorder, max_images=8, wait_s=wait_s)

        async def late() -> Result:
            await asyncio.sleep(0.02)
            return await batcher.submit(_images(0.2), ["late"])

        await asyncio.gather(batcher.submit(_images(0.1), ["early"]), late())
        return recorder.passes

    assert asyncio.run(together(wait_s=0.2)) == [["early", "late"]]
    assert asyncio.run(together(wait_s=0.0)) == [["early"], ["late"]]


def test_the_event_loop_stays_free_and_one_thread_computes():
    recorder = Recorder()
    batcher = Batcher(recorder, max_images=1)

    async def scenario() -> float:
        recorder.gate.clear()
        tasks = [asyncio.create_task(batcher.submit(_images(0.1), ["a"])) for _ in range(3)]
        start = time.monotonic()
        await asyncio.sleep(0.01)  # a health check would be answered here, while the pass is stuck
        answered_s = time.monotonic() - start
        recorder.gate.set()
        await asyncio.gather(*tasks)
        return answered_s

    assert asyncio.run(scenario()) < 1.0
    assert len(recorder.threads) == 1
    assert threading.get_ident() not in recorder.threads
