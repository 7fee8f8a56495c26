"""The benchmark from its checkpoints to its table; ratios of one run, on this machine."""

import logging
import socket
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import ray
import torch
import transformers
from ray import serve

from reward_services.models import load
from reward_services.spec import HttpSpec, RewardSpec
from workbench.reward_benchmark import checkpoint, service
from workbench.reward_benchmark.rounds import Bench
from workbench.reward_benchmark.statistics import BATCH, Summary, summarise, table


def run(rounds: int, batches: int, say: Callable[[str], None]) -> Summary:
    """Measure a PickScore of ViT-B/32's size, one thread each, in this process and on a Ray cluster of its own.

    Args:
        rounds: to take the median of, after one that is not counted.
        batches: of 16 pictures that a round asks of the service.
        say: shows a line to the user.
    """
    torch.set_num_threads(1)
    logging.getLogger("ray.serve").setLevel(logging.CRITICAL)  # its news go to its own log files
    transformers.utils.logging.disable_progress_bar()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with TemporaryDirectory() as scratch:
        specs = [
            RewardSpec(
                name=name,
                model="pickscore",
                checkpoint=str(checkpoint.write(Path(scratch, name), tower)),
                max_batch_images=BATCH,
                http=HttpSpec(access="loopback"),
            )
            for name, tower in (("vit-b", checkpoint.VIT_B_32), ("quick", checkpoint.SMALL))
        ]
        ray.init(
            address="local",
            num_cpus=4,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            # Ray's workers step back behind everybody else by default, and so behind what is computed in this process.
            _system_config={"worker_niceness": 0},
        )
        try:
            options = {"host": "127.0.0.1", "port": port}
            serve.start(proxy_location="HeadOnly", http_options=options, logging_config={"log_level": "ERROR"})
            for spec in specs:
                serve.run(service.build(spec), name=spec.app_name, route_prefix=f"/{spec.app_name}")
            bench = Bench(load(specs[0]), *specs, url=f"http://127.0.0.1:{port}")
            found = []
            for number in range(rounds + 1):
                say(f"round {number} of {rounds}" if number else "warming up")
                one = bench.round(number, batches if number else 1)
                found += [one] if number else []
        finally:
            serve.shutdown()
            ray.shutdown()
    summary = summarise(found)
    say("")
    say(table(summary))
    return summary
