"""A Ray cluster in this process, with Serve, for what is measured or compared on one machine."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray import serve

from slingstone.driver.cluster import private_head


@contextmanager
def local_cluster(port: int | None = None) -> Iterator[None]:
    """Have a cluster of 4 CPUs; Serve answers HTTP on this port of the machine itself, or none."""
    with private_head():
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
        place = "Disabled" if port is None else "HeadOnly"
        http_options = None if port is None else {"host": "127.0.0.1", "port": port}
        serve.start(place, http_options, logging_config={"log_level": "ERROR"})
        yield
    finally:
        serve.shutdown()
        ray.shutdown()
