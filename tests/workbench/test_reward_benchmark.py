"""The benchmark of the services: what its figures say, and one round of it."""

from pathlib import Path

import pytest
from ray import serve

from reward_services.deployment import build
from reward_services.models import load
from reward_services.spec import HttpSpec, RewardSpec
from workbench.reward_benchmark import SMALL, Bench, Call, Round, summarise, table, write_checkpoint


def _round(in_process: float, served: float, alone: float) -> Round:
    calls = {("serve", "service"): Call(0.4, 0.1), ("serve", "client"): Call(0.1, 0.2)}
    return Round(in_process, served, alone, calls)


def test_figures_are_medians_of_the_ratios_of_each_round():
    # The machine is slow in the last round, for everybody; the second one was disturbed.
    summary = summarise([_round(1.0, 1.1, 1.06), _round(1.0, 9.0, 3.0), _round(5.0, 5.5, 5.3)])
    assert summary.throughput == pytest.approx(1 / 1.1)
    assert summary.overhead == pytest.approx(0.06)
    assert summary.compute_s == 1.0
    assert summary.met
    assert "90.9% of the throughput in process (at least 90%: yes)" in table(summary)
    assert "client 0.100 s, 25%" in table(summary)


@pytest.mark.parametrize(("served", "alone", "words"), [(1.2, 1.02, "90%: NO"), (1.0, 1.2, "15%: NO")])
def test_a_bound_that_does_not_hold_is_said(served: float, alone: float, words: str):
    summary = summarise([_round(1.0, served, alone)])
    assert not summary.met
    assert words in table(summary)


@pytest.mark.ray
@pytest.mark.slow
def test_a_round_measures_every_way(cluster: None, proxy: str, tmp_path: Path):
    path = str(write_checkpoint(tmp_path / "quick", SMALL))
    one = RewardSpec(name="quick", model="pickscore", checkpoint=path, num_cpus=0.0, http=HttpSpec(access="loopback"))
    serve.run(build(one), name=one.app_name, route_prefix=f"/{one.app_name}")
    try:
        found = Bench(load(one), one, one, proxy).round(1, batches=4)
    finally:
        serve.delete(one.app_name)
    assert set(found.calls) == {(way, side) for way in ("serve", "http") for side in ("service", "client")}
    assert found.alone > 0
    assert found.served > 0
    assert found.in_process > 0
