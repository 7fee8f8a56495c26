"""Joining a cluster: what Ray could not do is told in a line."""

import argparse
from typing import Any

import pytest

from slingstone import cli
from slingstone.driver import cluster

TIMED_OUT = (
    "The current node timed out during startup. This could happen because some of the raylet failed to startup or the "
    "GCS has become overloaded."
)


@pytest.mark.parametrize(
    ("error", "address", "said"),
    [
        (Exception(TIMED_OUT), None, "no Ray cluster started on this machine: The current node timed out"),
        (TimeoutError(), None, "no Ray cluster started on this machine: TimeoutError; if the machine is busy"),
        (ConnectionError("Could not find\nany running"), "10.0.0.1:6379", "answers at 10.0.0.1:6379: Could not find;"),
    ],
)
def test_a_start_of_ray_that_times_out_is_one_line_and_no_traceback(monkeypatch, capsys, error, address, said):
    def init(**_: Any) -> None:
        raise error

    monkeypatch.setattr(cluster.ray, "init", init)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    assert cli.run(lambda _: cluster.connect(1), argparse.Namespace()) == 1
    told = capsys.readouterr().err
    assert said in told
    assert len(told.splitlines()) == 1
