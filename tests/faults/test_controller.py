"""A run whose controller is killed, and with it the actor that would free what the workers hold."""

from pathlib import Path

import pytest

from slingstone.driver import launch
from tests.faults import ranks
from tests.faults.test_training import assert_same_end

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("cluster")]
ALONE = (
    "runtime.num_workers=2",
    "rewards.backend=in_process",
    "evaluation.reference=null",
    "evaluation.num_prompts=2",
    "training.checkpoint_every_images=8",
)


def test_a_run_outlives_its_controller_and_cleaner_and_ends_bit_by_bit_as_undisturbed(micro, tmp_path: Path):
    expected = launch.align(micro(*ALONE, "name=undisturbed"), print)
    said: list[str] = []
    found = launch.align(micro(*ALONE, "name=orphaned"), said.append, rank=ranks.orphaned)
    assert any("starting again from checkpoint" in line for line in said), said
    assert_same_end(tmp_path, expected, found)
