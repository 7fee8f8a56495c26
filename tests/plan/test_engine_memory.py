"""The memory of engines, and of a rank that trains with them, against bytes that were counted on two ranks."""

import pytest
import torch
import torch.multiprocessing as mp

from slingstone.config import Runtime
from slingstone.engines.deepspeed_engine import deepspeed_config
from slingstone.plan import memory
from slingstone.plan.engine_memory import BUCKET
from tests import tiny
from tests.engines.ranks import run
from tests.plan import memory_ranks

ENGINES = {
    f"{'torch' if stage is None else f'zero{stage}'}-{precision}-{offload}": Runtime(
        num_workers=2,
        engine="torch" if stage is None else "deepspeed",
        zero_stage=stage or 0,
        precision=precision,
        offload=offload,
    )
    for stage in (None, 0, 1, 2, 3)
    for precision in ("fp32", "bf16")
    for offload in ("none", "cpu")
    if stage or (offload == "none" and (stage is None or precision == "fp32"))
}


EVERYDAY = ("zero2-bf16-none",)
OTHERS = tuple(label for label in ENGINES if label not in EVERYDAY)


def counted(directory, labels):
    """Return what two ranks counted of these engines, by label."""
    mp.spawn(run, (2, str(directory), {label: ENGINES[label] for label in labels}, memory_ranks.engine_alone), nprocs=2)
    return torch.load(directory / "results.pt", weights_only=True)


@pytest.fixture(scope="module")
def everyday(tmp_path_factory):
    return counted(tmp_path_factory.mktemp("everyday"), EVERYDAY)


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    return counted(tmp_path_factory.mktemp("others"), OTHERS)


def check(found):
    expected = found["expected"]
    resting = sum(expected[part] for part in ("weights", "optimizer", "kept", "host"))
    # On a CPU device and host are one memory.
    most = max(expected["gathered"] + expected["backward"], expected["update"] + expected["host_update"])
    assert found["resting"] == pytest.approx(resting, rel=0.05)
    assert resting + most == pytest.approx(found["resting"] + found["most"], rel=0.1)


@pytest.mark.parametrize("buckets", ["one bucket", "six buckets"])
@pytest.mark.parametrize("label", EVERYDAY)
def test_an_engine_holds_what_is_estimated_between_steps_and_at_its_most(everyday, label, buckets):
    check(everyday[label][buckets])


@pytest.mark.slow
@pytest.mark.parametrize("buckets", ["one bucket", "six buckets"])
@pytest.mark.parametrize("label", OTHERS)
def test_every_other_engine_holds_what_is_estimated_too(others, label, buckets):
    check(others[label][buckets])


def test_the_bucket_is_the_engines():
    config = deepspeed_config(ENGINES["zero2-fp32-none"], 1.0, weights=10 * BUCKET)
    assert config["zero_optimization"]["reduce_bucket_size"] == BUCKET


# By the pictures of a rank's step: gradients and buffers are the most of one, graphs of sixteen.
TRAINERS = {
    "zero1-fp32-none-1": ENGINES["zero1-fp32-none"],
    "zero2-bf16-none-16": ENGINES["zero2-bf16-none"],
    "zero3-fp32-none-1": ENGINES["zero3-fp32-none"],
    "zero3-fp32-none-16": ENGINES["zero3-fp32-none"],
    "zero2-fp32-cpu-16": ENGINES["zero2-fp32-cpu"],
}


@pytest.fixture(scope="module")
def trainers(tmp_path_factory):
    directory = tmp_path_factory.mktemp("trainers")
    tiny.write_pipeline(directory / "pipeline")
    mp.spawn(run, (2, str(directory), TRAINERS, memory_ranks.whole_trainer), nprocs=2)
    return directory, torch.load(directory / "results.pt", weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("label", TRAINERS)
def test_a_rank_that_trains_holds_what_is_estimated(trainers, label):
    directory, found = trainers
    batch = int(label.rsplit("-", 1)[1])
    run = memory_ranks.experiment(directory / "pipeline", TRAINERS[label], batch)
    expected = memory.estimate(run, memory.sizes(run))
    assert found[label]["resting"] == pytest.approx(expected.between_steps + expected.host, rel=0.1)
    assert found[label]["most"] == pytest.approx(expected.most + expected.host, rel=0.1)
