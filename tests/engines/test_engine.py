"""Every engine takes the same steps: DeepSpeed's stages shard the work and change nothing else."""

import pytest
import torch
import torch.multiprocessing as mp

from slingstone.config import Runtime
from slingstone.engines.deepspeed_engine import deepspeed_config
from slingstone.engines.engine import TorchEngine, build_engine
from slingstone.plan.engine_memory import average_bytes
from tests.engines import drift
from tests.engines.ranks import ADAM, network, run

STAGES = {f"zero{stage}": Runtime(num_workers=2, zero_stage=stage) for stage in range(4)}
RUNTIMES = {
    "torch": Runtime(num_workers=2, engine="torch"),
    **STAGES,
    "offload": Runtime(num_workers=2, zero_stage=2, offload="cpu"),
    "bf16_torch": Runtime(num_workers=2, engine="torch", precision="bf16"),
    "bf16_zero1": Runtime(num_workers=2, zero_stage=1, precision="bf16"),
    "bf16_zero2": Runtime(num_workers=2, zero_stage=2, precision="bf16"),
    "bf16_zero3": Runtime(num_workers=2, zero_stage=3, precision="bf16"),
}
FP32 = ["torch", *STAGES, "offload"]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    directory = tmp_path_factory.mktemp("two_ranks")
    mp.spawn(run, (2, str(directory), RUNTIMES), nprocs=2)
    return torch.load(directory / "results.pt", weights_only=True)


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory):
    directory = tmp_path_factory.mktemp("one_rank")
    mp.spawn(run, (1, str(directory), {"torch": RUNTIMES["torch"], "zero2": RUNTIMES["zero2"]}), nprocs=1)
    return torch.load(directory / "results.pt", weights_only=True)


@pytest.mark.parametrize("label", FP32)
def test_every_engine_gives_the_losses_and_norms_of_plain_torch(two_ranks, label):
    # fp32: sums in another order, clip / (norm + 1e-6) against clip / norm; 1e-5 is some 100 ulp after 5 steps
    torch.testing.assert_close(
        torch.tensor(two_ranks[label]["losses"]), torch.tensor(two_ranks["torch"]["losses"]), rtol=1e-5, atol=1e-6
    )


def test_the_five_steps_do_learn_and_do_clip(two_ranks):
    losses = torch.tensor(two_ranks["torch"]["losses"])
    assert losses[0, 2] > 0.5, "the first gradient must be above the clipping norm"
    assert losses[-1, 1] < losses[0, 1]


@pytest.mark.parametrize("label", ["torch", "zero2"])
def test_two_ranks_take_the_step_of_one_rank_with_the_whole_batch(one_rank, two_ranks, label):
    torch.testing.assert_close(
        torch.tensor(two_ranks[label]["losses"]), torch.tensor(one_rank[label]["losses"]), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("label", ["bf16_zero1", "bf16_zero2", "bf16_zero3"])
def test_bf16_engines_agree_to_bf16_rounding(two_ranks, label):
    # 8 bits of mantissa: 2^-8 a rounding, a few of them in a row
    torch.testing.assert_close(
        torch.tensor(two_ranks[label]["losses"]), torch.tensor(two_ranks["bf16_torch"]["losses"]), rtol=3e-2, atol=3e-2
    )


@pytest.mark.parametrize("parts", ["by_two", "by_one"])
@pytest.mark.parametrize("label", RUNTIMES)
def test_micro_batches_add_up_to_the_whole_batch(two_ranks, label, parts):
    # Four pictures a rank at once, two twice or one four times: sums in another order, and in bf16 roundings of each.
    tolerance = 3e-2 if label.startswith("bf16") else 1e-5
    torch.testing.assert_close(
        torch.tensor(two_ranks[label][parts]),
        torch.tensor(two_ranks[label]["losses"][:3]),
        rtol=tolerance,
        atol=tolerance,
    )


@pytest.mark.parametrize("label", RUNTIMES)
def test_a_restored_engine_continues_bit_by_bit(two_ranks, label):
    assert two_ranks[label]["resumed"] == two_ranks[label]["losses"][3:]


@pytest.mark.parametrize("label", FP32)
def test_the_masters_of_all_ranks_are_the_whole_network(two_ranks, label):
    weights, expected = two_ranks[label]["weights"], two_ranks["torch"]["weights"]
    assert {name: value.shape for name, value in weights.items()} == {
        name: value.shape for name, value in network(1).state_dict().items()
    }
    for name in expected:
        torch.testing.assert_close(weights[name], expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("label", RUNTIMES)
def test_one_process_reads_the_unrounded_weights_out_of_what_the_ranks_saved(two_ranks, label):
    assert two_ranks[label]["saved"]


@pytest.mark.parametrize("label", RUNTIMES)
def test_each_rank_holds_the_part_of_the_average_that_is_estimated(two_ranks, label):
    weights = sum(weight.numel() for weight in network(1).parameters())
    padding = 16 * 4 * 3  # shards are filled up to multiples of a few weights
    assert two_ranks[label]["average_bytes"] == pytest.approx(average_bytes(weights, RUNTIMES[label]), abs=padding)


# A step is 8 to 67 fp32 neighbours: it and its sum are rounded by at most a sixteenth of that.
KEPT = 1 / 16


@pytest.mark.parametrize("label", RUNTIMES)
def test_the_average_learns_what_steps_too_small_for_the_networks_precision_teach(two_ranks, label):
    missed = two_ranks[label]["missed"]
    assert missed["start"] == 0, "masters and average must start as the fp32 weights"
    assert missed["masters"] < KEPT
    assert missed["average"] < KEPT


@pytest.mark.slow
def test_a_thousand_steps_of_5e_7_reach_the_average_of_every_engine(tmp_path):
    mp.spawn(run, (2, str(tmp_path), RUNTIMES, drift.thousand), nprocs=2)
    for label, found in torch.load(tmp_path / "results.pt", weights_only=True).items():
        assert found["missed"]["start"] == 0, label
        assert found["missed"]["average"] < KEPT, label


def test_the_learning_rate_rises_linearly_and_stays():
    engine = build_engine(network(0), ADAM, RUNTIMES["torch"], max_grad_norm=1.0)
    assert isinstance(engine, TorchEngine)
    rates = []
    for _ in range(5):
        rates.append(engine.optimizer.param_groups[0]["lr"] / ADAM.lr)
        engine.backward(engine(torch.ones(2, 6)).sum())
        engine.step()
    assert rates == pytest.approx([1 / 3, 2 / 3, 1, 1, 1])


def test_a_weight_without_gradient_is_stepped_as_if_its_gradient_were_zero():
    engine = build_engine(network(0), ADAM, RUNTIMES["torch"], max_grad_norm=1.0)
    before = [weight.detach().clone() for weight in engine.module.parameters()]
    assert engine.step() == 0.0
    for weight, old in zip(engine.module.parameters(), before, strict=True):
        torch.testing.assert_close(weight, old * (1 - ADAM.lr / 3 * ADAM.weight_decay))


def test_deepspeeds_dictionary_is_rendered_fresh_each_time():
    first = deepspeed_config(RUNTIMES["zero2"], 1.0)
    first["zero_optimization"]["stage"] = 9
    assert deepspeed_config(RUNTIMES["zero2"], 1.0)["zero_optimization"]["stage"] == 2
