"""Where workers and rewards go: what Ray is told, and what no cluster of such nodes can hold."""

from pathlib import Path
from typing import Any

import pytest

from reward_services.deployment import build
from slingstone.config import Experiment, flatten, load
from slingstone.driver import placement
from slingstone.driver.packing import Actor, Room, fits

SCENES = Path(__file__).resolve().parents[2] / "configs" / "align" / "scenes.yaml"
APART = ("placement.trainer=slingstone/group=trainer", "placement.rewards=slingstone/group=reward")


def node(group: str | None, **resources: float) -> dict[str, Any]:
    labels = {} if group is None else {"slingstone/group": group}
    return {"Alive": True, "Labels": labels, "Resources": resources}


def scenes(*overrides: str) -> Experiment:
    return load(SCENES, overrides)


def test_a_run_that_says_nothing_runs_anywhere_as_before():
    run = scenes("runtime.num_workers=2")
    said = placement.scaling(run)
    assert said == {
        "num_workers": 2,
        "use_gpu": False,
        "resources_per_worker": {"CPU": 1, "GPU": 0},
        "placement_strategy": "PACK",
    }
    placement.check(run, [node(None, CPU=8.0)])
    assert all(entry.node_label is None for entry in placement.managed(run.rewards, run.placement))


def test_a_run_fits_when_workers_and_managed_rewards_find_their_cpus():
    run = scenes("rewards.services.hps.num_cpus=1", "rewards.services.hps.num_replicas=2")
    placement.check(run, [node(None, CPU=4.0)])
    with pytest.raises(ValueError, match=r"2 workers and 3 managed rewards need 4 CPUs, the cluster has 3"):
        placement.check(run, [node(None, CPU=3.0)])
    placement.check(scenes("rewards.lifecycle=external"), [node(None, CPU=2.0)])
    placement.check(scenes("rewards.backend=in_process"), [node(None, CPU=2.0)])


def test_a_gpu_run_needs_a_gpu_a_worker():
    with pytest.raises(ValueError, match=r"need 2 GPUs, the cluster has 1"):
        placement.check(scenes("runtime.use_gpu=true"), [node(None, CPU=8.0, GPU=1.0)])


def test_ranks_and_replicas_are_told_the_label_of_their_group():
    run = scenes(*APART, "runtime.use_gpu=true", "placement.trainer_gpu_share=0.75", "placement.strategy=spread")
    said = placement.scaling(run)
    assert said["label_selector"] == {"slingstone/group": "trainer"}
    assert (said["resources_per_worker"]["GPU"], said["placement_strategy"]) == (0.75, "SPREAD")
    for entry in placement.managed(run.rewards, run.placement):
        options = build(entry.spec)._bound_deployment.ray_actor_options
        assert options["label_selector"] == {"slingstone/group": "reward"}


def test_a_reward_may_have_nodes_of_its_own():
    run = scenes(*APART, "rewards.services.hps.node_label=gpu=l4")
    found = {entry.name: entry.node_label for entry in placement.managed(run.rewards, run.placement)}
    assert found["hps"] == "gpu=l4"
    assert set(found.values()) == {"gpu=l4", "slingstone/group=reward"}


def test_a_label_that_no_node_carries_is_named_with_what_there_is():
    nodes = [node("reward", CPU=8.0), node("reward", CPU=8.0), node(None, CPU=8.0)]
    with pytest.raises(ValueError, match="no node carries") as caught:
        placement.check(scenes(*APART), nodes)
    (line,) = str(caught.value).splitlines()
    assert "placement.trainer = 'slingstone/group=trainer'" in line
    assert "not at all (1), reward (2)" in line
    assert "ray start --labels slingstone/group=trainer" in line
    dead = node("trainer", CPU=8.0) | {"Alive": False}
    with pytest.raises(ValueError, match="no node carries"):
        placement.check(scenes(*APART), [*nodes, dead])
    placement.check(scenes(*APART), [*nodes, node("trainer", CPU=8.0)])


def test_the_label_of_one_reward_is_named_by_its_key():
    run = scenes("rewards.services.hps.node_label=gpu=l4")
    with pytest.raises(ValueError, match=r"rewards.services.hps.node_label = 'gpu=l4'"):
        placement.check(run, [node(None, CPU=8.0)])
    placement.check(
        scenes("rewards.services.hps.node_label=gpu=l4", "rewards.backend=in_process"), [node(None, CPU=8.0)]
    )


def test_a_worker_is_not_cut_in_two_by_the_border_of_two_nodes():
    run = scenes(*APART, "runtime.num_workers=4", "runtime.threads_per_worker=4")
    reward = node("reward", CPU=16.0)
    placement.check(run, [node("trainer", CPU=8.0), node("trainer", CPU=8.0), reward])
    with pytest.raises(ValueError, match=r"the 2 nodes of slingstone/group=trainer hold 3 workers of 4 CPUs each"):
        placement.check(run, [node("trainer", CPU=6.0), node("trainer", CPU=10.0), reward])


def test_rewards_that_their_nodes_cannot_hold_are_named():
    run = scenes(*APART, "rewards.services.hps.num_cpus=4", "rewards.services.hps.num_replicas=2")
    with pytest.raises(ValueError, match=r"hps.* need 8 CPUs on nodes of slingstone/group=reward, which have 7"):
        placement.check(run, [node("trainer", CPU=64.0), node("reward", CPU=7.0)])
    same = scenes("placement.trainer=g=a", "placement.rewards=g=a", "rewards.services.hps.num_cpus=4")
    both = {"Alive": True, "Labels": {"g": "a"}, "Resources": {"CPU": 5.0}}
    with pytest.raises(ValueError, match=r"2 workers and the rewards .* need 6 CPUs"):
        placement.check(same, [both, node(None, CPU=8.0)])


def test_two_workers_never_share_a_gpu_however_small_their_part():
    run = scenes(
        "runtime.use_gpu=true", "runtime.num_workers=3", "training.batch_size=36", "placement.trainer_gpu_share=0.6"
    )
    placement.check(run, [node(None, CPU=64.0, GPU=3.0)])
    with pytest.raises(ValueError, match=r"hold 2 workers of 1 CPUs and 0.6 GPUs each"):
        placement.check(run, [node(None, CPU=64.0, GPU=2.0)])
    with pytest.raises(ValueError, match=r"greater than 0\.5"):
        scenes("runtime.use_gpu=true", "placement.trainer_gpu_share=0.5")
    with pytest.raises(ValueError, match="has no GPU to share"):
        scenes("placement.trainer_gpu_share=0.6")


@pytest.mark.parametrize("label", ["trainer", "=trainer", "a=b=c", "a b=c", "a="])
def test_what_is_no_label_is_refused(label):
    with pytest.raises(ValueError, match="trainer"):
        scenes(f"placement.trainer={label}")


def test_a_placement_is_overridden_and_flattened_like_any_key():
    flat = flatten(scenes(*APART))
    assert flat["placement.trainer"] == "slingstone/group=trainer"
    assert load(SCENES, [f"{key}={value}" for key, value in flat.items()]) == scenes(*APART)


def gpu_rewards(*shares: float) -> list[str]:
    """Return overrides that give the rewards of the demo these parts of a GPU."""
    names = ("pickscore", "hps", "imagereward")
    fields = [f"rewards.services.{name}.num_gpus={share}" for name, share in zip(names, shares, strict=True)]
    return [*fields, *(f"rewards.services.{name}.num_cpus=1" for name in names)]


def test_three_rewards_of_more_than_half_a_gpu_are_refused_on_two_gpus_before_they_wait_in_silence():
    run = scenes(*gpu_rewards(0.6, 0.6, 0.6))
    with pytest.raises(ValueError, match="placement: 2 workers of 1 CPUs") as caught:
        placement.check(run, [node(None, CPU=16.0, GPU=2.0)])
    assert "1 of imagereward of 1 CPUs and 0.6 GPUs each find no room together" in str(caught.value)
    assert "16 CPUs and 2 GPUs (1)" in str(caught.value)
    placement.check(run, [node(None, CPU=16.0, GPU=3.0)])
    placement.check(scenes(*gpu_rewards(0.6, 0.5, 0.5)), [node(None, CPU=16.0, GPU=2.0)])


def test_a_whole_gpu_is_on_one_node_and_has_nobody_else_on_it():
    run = scenes(*gpu_rewards(2, 0.5, 0.5))
    with pytest.raises(ValueError, match="find no room together"):
        placement.check(run, [node(None, CPU=8.0, GPU=1.0), node(None, CPU=8.0, GPU=1.0), node(None, CPU=8.0, GPU=1.0)])
    placement.check(run, [node(None, CPU=8.0, GPU=1.0), node(None, CPU=8.0, GPU=2.0)])


def test_labels_and_workers_count_when_rewards_are_packed():
    apart = ("rewards.services.hps.node_label=gpu=l4", "runtime.use_gpu=true")
    labelled = node(None, CPU=8.0, GPU=1.0) | {"Labels": {"gpu": "l4"}}
    placement.check(scenes(*gpu_rewards(0.5, 0.6, 0.4), *apart), [labelled, node(None, CPU=8.0, GPU=3.0)])
    with pytest.raises(ValueError, match="find no room together"):
        # Workers take two of the three GPUs, and the third is too small for both others.
        placement.check(scenes(*gpu_rewards(0.5, 0.6, 0.6), *apart), [labelled, node(None, CPU=8.0, GPU=3.0)])


def test_packing_finds_what_taking_the_largest_first_does_not_and_knows_when_there_is_no_room():
    everywhere = frozenset({0})
    shares = [0.6, 0.4, 0.5, 0.3, 0.2]
    assert fits([Actor(0, share, everywhere) for share in shares], [Room(0, (1.0, 1.0))])
    assert fits([Actor(0, s, everywhere) for s in (0.44, 0.3, 0.26, 0.37, 0.33, 0.3)], [Room(0, (1.0, 1.0))])
    assert not fits([Actor(0, 0.4, everywhere)] * 5, [Room(0, (1.0, 1.0))])
    nodes = frozenset(range(64))
    rooms = [Room(96.0, (1.0,) * 8)] * 64
    workers, replicas = [Actor(4, 1, nodes)] * 488, [Actor(4, 0.6, nodes)] * 24
    assert fits(workers + replicas, rooms)
    three = [Room(96.0, (1.0,) * 8)] * 3
    assert fits([Actor(4, 0.6, frozenset({0, 1, 2}))] * 24, three)
    assert not fits([Actor(4, 0.6, frozenset({0, 1, 2}))] * 25, three)
