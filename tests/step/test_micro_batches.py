"""A step that is computed in parts, or in fewer passes, is the same step."""

import copy
from dataclasses import replace

import pytest
import torch

from slingstone.objectives.divergence import Divergence, Guidance
from tests.step.conftest import weights, without_times

SLOPE = torch.tensor([1.0, 2.0, 3.0])


@pytest.mark.parametrize("size", [16, 5, 1])
def test_a_step_by_micro_batches_is_the_step_of_the_whole_batch(world, reward, size):
    twin = copy.deepcopy(world)
    inner = Divergence(guidance=Guidance("inner", 1.0))
    for one, most in ((world, 0), (twin, size)):
        one.rewards = [reward("one", SLOPE)]
        one.settings = replace(
            one.settings, divergence=inner, reward_weight=0.1, assistant_updates=2, micro_batch_size=most
        )
    first, second = world.build(), twin.build()
    for _ in range(3):
        # fp32: sums in another order, a few of them in a row
        assert without_times(second.step()) == pytest.approx(without_times(first.step()), rel=1e-4, abs=1e-6)
    for one, other in zip(weights(world.generator), weights(twin.generator), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_no_network_meets_more_than_a_micro_batch(world, reward):
    seen: dict[str, list[int]] = {"generator": [], "assistant": [], "reference": []}
    for name, sizes in seen.items():
        getattr(world, name).register_forward_hook(lambda _, __, output, sizes=sizes: sizes.append(len(output)))
    world.rewards = [reward("one", SLOPE)]
    inner = Divergence(guidance=Guidance("inner", 1.0))
    world.settings = replace(world.settings, batch_size=8, micro_batch_size=3, reward_weight=1.0, divergence=inner)
    world.build().step()
    parts = [3, 3, 2]
    assert seen["generator"] == 3 * parts, "for the assistant, for the divergence, and with its graph"
    assert seen["assistant"] == 2 * parts
    assert seen["reference"] == [3, 3, 3, 3, 2, 2]


def test_the_reference_with_and_without_the_prompt_may_be_one_pass(world):
    twin, sizes = copy.deepcopy(world), []
    twin.reference.register_forward_hook(lambda _, __, output: sizes.append(len(output)))
    for one, joint in ((world, False), (twin, True)):
        divergence = Divergence(guidance=Guidance("inner", 1.0), gradient="recomputed")
        one.settings = replace(one.settings, divergence=divergence, joint_reference=joint)
        one.generator.mean.data += 0.5
    first, second = world.build().step(), twin.build().step()
    assert without_times(second) == pytest.approx(without_times(first), rel=1e-5)
    assert sizes == [64, 64], "once, and once more with its graph"
