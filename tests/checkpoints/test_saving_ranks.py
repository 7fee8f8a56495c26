"""Checkpoints of two ranks: one unit, whoever wrote what."""

import pytest
import torch
import torch.multiprocessing as mp

from tests.checkpoints.two_savers import ENGINES, save_and_resume


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    root = tmp_path_factory.mktemp("two")
    mp.spawn(save_and_resume, (str(root),), nprocs=2)
    return [torch.load(root / f"found_{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("label", ENGINES)
def test_two_ranks_continue_bit_by_bit(found, label):
    assert [rank[label]["same"] for rank in found] == [True, True]


@pytest.mark.parametrize("label", ENGINES)
def test_one_process_exports_from_the_shards_what_both_ranks_held(found, label):
    assert [rank[label]["exported"] for rank in found] == [True, True]


@pytest.mark.parametrize("label", ENGINES)
def test_a_file_that_one_rank_finds_damaged_is_refused_by_both_and_both_go_back(found, label):
    for rank in found:
        refused, taken = rank[label]["told"]
        assert "checkpoint 000000000024: rank_1.pt has" in refused
        assert taken == "000000000016"
