"""Run in a process of its own: a Ray cluster of several nodes on this machine, and what a run does on it.

    python -m tests.infra.several_nodes SCENARIO RUN.yaml DIRECTORY

writes DIRECTORY/found.json. Nodes are raylets with CPUs, GPUs and labels that exist in name only.
"""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray._private import state
from ray.cluster_utils import Cluster
from ray.exceptions import GetTimeoutError
from ray.util.placement_group import placement_group, remove_placement_group

from slingstone.config import Experiment, load
from slingstone.driver import launch, placement, rewards
from slingstone.driver.preflight import prepare
from slingstone.driver.reservation import held_for_trainers

GROUP = "slingstone/group"
APART = (f"placement.trainer={GROUP}=trainer", f"placement.rewards={GROUP}=reward")
SHORT = ("evaluation.reference=null", "evaluation.num_prompts=2", "evaluation.batch_size=4")


@contextmanager
def cluster(directory: Path, *nodes: dict[str, Any]) -> Iterator[tuple[Cluster, list[Any]]]:
    """Yield a cluster of a head that computes nothing and the given nodes; this process has joined it."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        added = [made.add_node(**node) for node in nodes]
        ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
        yield made, added
    finally:
        ray.shutdown()
        made.shutdown()


def node(group: str, **resources: float) -> dict[str, Any]:
    """Return a node's arguments."""
    return {"labels": {GROUP: group}, **resources}


class Watch(threading.Thread):
    """Notes which actors run, and on nodes of which group, until stopped."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: dict[str, set[str]] = {}
        self.nodes: dict[str, set[str]] = {}
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.3):
            groups = {node["NodeID"]: node["Labels"].get(GROUP, "head") for node in ray.nodes()}
            for actor in state.actors().values():
                where = actor["Address"]["NodeID"]
                if actor["State"] == "ALIVE" and where in groups:
                    name = actor["ActorClassName"]
                    self.seen.setdefault(name, set()).add(groups[where])
                    self.nodes.setdefault(name, set()).add(where)

    def stop(self) -> None:
        self._over.set()
        self.join()


def lands(run: Callable[..., Experiment], directory: Path) -> dict[str, Any]:
    """Align with ranks and rewards on groups of their own; then the same where one group is missing."""
    asked = run(*APART, *SHORT, "runtime.num_workers=2", "placement.strategy=spread")
    with cluster(directory, *(node(group, num_cpus=2) for group in ("trainer", "trainer", "reward", "other"))):
        watch = Watch()
        watch.start()
        summary = launch.align(asked, print)
        watch.stop()
        absent = run(*APART, "name=absent", f"placement.rewards={GROUP}=nowhere")
        try:
            launch.align(absent, print)
            refusal = ""
        except ValueError as error:
            refusal = str(error)
    return {
        "groups": {name: sorted(groups) for name, groups in watch.seen.items()},
        "nodes": {name: len(nodes) for name, nodes in watch.nodes.items()},
        "images": summary["images"],
        "refusal": refusal,
    }


def shares_gpus(run: Callable[..., Experiment], directory: Path) -> dict[str, Any]:
    """Have two replicas of a fifth of a GPU and two workers of four fifths share two GPUs, with and without holding."""
    services = ("pickscore", "hps")
    parts = [f"rewards.services.{name}.num_gpus=0.2" for name in services]
    asked = run(*parts, "runtime.use_gpu=true", "runtime.num_workers=2", "placement.trainer_gpu_share=0.8")
    found = {}
    with cluster(directory, node("both", num_cpus=4, num_gpus=2)):
        placement.check(asked, ray.nodes())
        for way, starting in (("held", held_for_trainers(asked)), ("not_held", None)):
            with rewards.running(asked.rewards, asked.placement, directory, starting):
                workers = placement_group([placement.worker_resources(asked)] * 2)
                found[way] = True
                with suppress(GetTimeoutError):
                    ray.get(workers.ready(), timeout=20 if way == "held" else 5)
                    found[way] = True
                    remove_placement_group(workers)
                    continue
                found[way] = False
                remove_placement_group(workers)
            while ray.available_resources().get("GPU", 0.0) < 2:
                time.sleep(0.2)
    return found


def main() -> None:
    scenario, path, directory = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    found = {"lands": lands, "shares_gpus": shares_gpus}[scenario](
        lambda *overrides: prepare(load(path, overrides)), directory
    )
    (directory / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
