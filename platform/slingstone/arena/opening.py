"""Opens an arena on a cluster and keeps it open."""

import logging
import threading
from collections.abc import Callable
from typing import Any

import ray
from ray import serve

from slingstone.arena.deployment import build
from slingstone.config import Arena
from slingstone.driver.cluster import connect, starting


def open_arena(arena: Arena, say: Callable[[str], None], closed: threading.Event | None = None) -> None:
    """Serve an arena until SIGTERM or Ctrl-C comes, or `closed` is set.

    Raises:
        ValueError: what the user can mend.
    """
    if not ray.is_initialized():
        connect(1, arena.drawers.open_cluster)
    logging.getLogger("ray.serve").setLevel(logging.CRITICAL)  # its news go to its own log files
    say(f"opening   {', '.join(entry.name for entry in arena.generators)}")
    listen(arena)
    name = f"arena-{arena.name}"
    try:
        serve.run(build(arena), name=name, route_prefix="/")
        say(f"open      http://{arena.door.host}:{arena.door.port}   (`make stop` closes it; the votes stay)")
        (closed or threading.Event()).wait()
    except RuntimeError as error:
        raise ValueError(f"arena: did not open: {str(error).strip().splitlines()[-1]}") from error
    finally:
        serve.delete(name, _blocking=False)


def listen(arena: Arena) -> None:
    """Have Serve listen where the arena's door is.

    Raises:
        ValueError: Serve runs on this cluster for others, and listens elsewhere.
    """
    http: dict[str, Any] = {"host": arena.door.host, "port": arena.door.port}
    http["request_timeout_s"] = arena.drawers.deadline_s + 10  # the arena's own answer comes first
    start = {"http_options": http, "proxy_location": "HeadOnly", "logging_config": {"log_level": "ERROR"}}
    with starting("Ray Serve did not start"):
        serve.start(**start)
    if not serve.status().proxies and not serve.status().applications:
        serve.shutdown()  # runs that are over had it without HTTP
        serve.start(**start)
    if not serve.status().proxies:
        busy = ", ".join(serve.status().applications)
        raise ValueError(
            f"door.port: Serve runs for {busy} and listens on no port; open the arena when they have ended"
        )
