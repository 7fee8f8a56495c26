"""Opens an arena on a cluster and keeps it open."""

import logging
import threading
from collections.abc import Callable

import ray
from ray import serve

from slingstone.arena.deployment import build
from slingstone.config import Arena
from slingstone.driver.cluster import connect
from slingstone.driver.stopping import told_to_stop


def open_arena(arena: Arena, say: Callable[[str], None], stop: threading.Event | None = None) -> None:
    """Serve an arena until SIGTERM or Ctrl-C, or until `stop` is set.

    Raises:
        ValueError: what the user can mend.
    """
    if not ray.is_initialized():
        connect(1)
    logging.getLogger("ray.serve").setLevel(logging.CRITICAL)  # its news go to its own log files
    http = {"host": arena.door.host, "port": arena.door.port, "request_timeout_s": arena.drawers.deadline_s}
    serve.start(http_options=http, proxy_location="HeadOnly", logging_config={"log_level": "ERROR"})
    say(f"opening   {len(arena.generators)} generators: {', '.join(entry.name for entry in arena.generators)}")
    name = f"arena-{arena.name}"
    try:
        serve.run(build(arena), name=name, route_prefix="/")
        say(f"open      http://{arena.door.host}:{arena.door.port}   (Ctrl-C or `make stop` closes it)")
        if stop is not None:
            stop.wait()
            return
        with told_to_stop(say) as told:
            told.wait()
    except RuntimeError as error:
        raise ValueError(f"arena: did not open: {str(error).strip().splitlines()[-1]}") from error
    finally:
        serve.delete(name, _blocking=False)
        say("closed    the votes are kept")
