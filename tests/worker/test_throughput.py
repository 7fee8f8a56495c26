"""How much of a device a run is told to use, and where its time is said to go."""

import pytest
import torch

from slingstone.plan import work
from slingstone.worker import throughput


def test_the_share_of_the_ceiling_counts_what_the_algorithm_asks_for(micro, monkeypatch):
    monkeypatch.setattr(throughput, "ceiling", lambda device, dtype: 1e12)
    two = ("runtime.num_workers=2", "objective.gradient=recomputed", "runtime.gradient_checkpointing=true")
    run, roomy = micro(*two), micro("objective.gradient=direct")
    watch = throughput.Throughput(run, torch.device("cpu"))
    forward = work.work_of(run)
    warm_up = watch.of({"seconds/step": 2.0, "seconds/assistant": 2.0}, 8)
    assert warm_up["images_per_second"] == 4.0
    assert warm_up["mfu"] == pytest.approx(4 * 4 * forward.network / 2.0 / 1e12), "4 passes of this worker's 4 pictures"
    whole = watch.of({"seconds/step": 0.5, "seconds/assistant": 0.1, "grad_norm/generator": 1.0}, 8)
    assert whole["mfu"] == pytest.approx(4 * work.step_flops(roomy, forward) / 0.5 / 1e12)
    assert 0.05 < whole["memory/peak_gib"] < 100


def test_the_two_stages_that_take_longest_are_named_with_their_share_of_all_steps(micro, monkeypatch):
    monkeypatch.setattr(throughput, "ceiling", lambda device, dtype: 1e12)
    watch = throughput.Throughput(micro(), torch.device("cpu"))
    for decode in (1.0, 3.0):
        watch.of({"seconds/step": 5.0, "seconds/decode": decode, "seconds/text": 0.5, "seconds/divergence": 1.5}, 8)
    assert watch.largest() == {"decode": 0.4, "divergence": 0.3}


def test_the_ceiling_is_at_least_what_a_product_reaches_and_leaves_the_runs_randomness_alone():
    state = torch.get_rng_state()
    found = throughput.ceiling(torch.device("cpu"), torch.float32)
    assert torch.equal(torch.get_rng_state(), state)
    assert 1e9 < found < 1e14
