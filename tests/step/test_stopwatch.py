"""Seconds of a step's stages, by a GPU's own clock and without waiting for it."""

import pytest
import torch

from slingstone.step.stopwatch import Stopwatch


class Event:
    """In the place of torch.cuda.Event: done a step after it was recorded, each a second after the one before."""

    recorded = 0
    step = 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        Event.recorded += 1
        self.second, self.step = Event.recorded, Event.step

    def elapsed_time(self, other: "Event") -> float:
        assert self.step < Event.step, "asked of a GPU that has not come so far"
        return 1000.0 * (other.second - self.second)


def test_a_gpus_stages_are_told_by_the_step_after_and_nothing_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    watch, told = Stopwatch(torch.device("cuda")), []
    for stages in (["one", "two", "one"], ["three"], []):
        watch.begin()
        for name in stages:
            with watch.stage(name):
                pass
        told.append(watch.end())
        Event.step += 1
    assert told == [{}, {"one": 2.0, "two": 1.0}, {"three": 1.0}]


def test_a_step_that_was_interrupted_counts_in_no_other() -> None:
    watch = Stopwatch(torch.device("cpu"))
    with watch.stage("of a step that a reward ended"):
        pass
    watch.begin()
    with watch.stage("one"):
        pass
    assert watch.end().keys() == {"one"}
