"""Engines over adapters: two of them on one frozen base take the steps of plain torch, and the base stays as it was."""

import pytest
import torch
import torch.multiprocessing as mp

from slingstone.config import Runtime
from tests.engines.adapter_ranks import measure, networks
from tests.engines.ranks import run

RUNTIMES = {
    "torch": Runtime(num_workers=2, engine="torch"),
    **{f"zero{stage}": Runtime(num_workers=2, zero_stage=stage) for stage in range(3)},
    "offload": Runtime(num_workers=2, zero_stage=2, offload="cpu"),
    "bf16_torch": Runtime(num_workers=2, engine="torch", precision="bf16"),
    "bf16_zero2": Runtime(num_workers=2, zero_stage=2, precision="bf16"),
}


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    directory = tmp_path_factory.mktemp("adapters")
    mp.spawn(run, (2, str(directory), RUNTIMES, measure), nprocs=2)
    return torch.load(directory / "results.pt", weights_only=True)


@pytest.mark.parametrize("label", ["zero0", "zero1", "zero2", "offload"])
def test_every_stage_gives_the_losses_and_norms_of_plain_torch(two_ranks, label):
    # As for whole networks: sums in another order, some 100 ulp after 5 steps.
    torch.testing.assert_close(
        torch.tensor(two_ranks[label]["losses"]), torch.tensor(two_ranks["torch"]["losses"]), rtol=1e-5, atol=1e-6
    )


def test_bf16_engines_agree_to_bf16_rounding(two_ranks):
    torch.testing.assert_close(
        torch.tensor(two_ranks["bf16_zero2"]["losses"]),
        torch.tensor(two_ranks["bf16_torch"]["losses"]),
        rtol=3e-2,
        atol=3e-2,
    )


def test_the_steps_do_learn(two_ranks):
    losses = torch.tensor(two_ranks["torch"]["losses"])
    assert losses[-1, 1] < losses[0, 1]
    assert losses[0, 2:].min() > 0


@pytest.mark.parametrize("label", RUNTIMES)
def test_the_base_never_changes(two_ranks, label):
    assert two_ranks[label]["base_unchanged"]


@pytest.mark.parametrize("label", RUNTIMES)
def test_what_is_averaged_are_the_adapters_under_the_names_of_the_whole_network(two_ranks, label):
    whole = networks(RUNTIMES[label])[1]
    names = sorted(name for name, weight in whole.named_parameters() if weight.requires_grad)
    assert sorted(two_ranks[label]["masters"]) == names
    assert two_ranks[label]["same_picture"], "the engine's weights must be those that the whole network computes with"


@pytest.mark.parametrize("label", RUNTIMES)
def test_a_restored_engine_continues_bit_by_bit(two_ranks, label):
    assert two_ranks[label]["resumed"] == two_ranks[label]["losses"][3:]
