"""The arena as one Serve application: generators and a judge behind a door."""

from typing import Any

from ray import serve
from ray.serve import Application

from slingstone.arena.drawing import Drawer, Judge, actor_options, identity
from slingstone.arena.front import Front
from slingstone.arena.preparation import prepare
from slingstone.config import Arena


def build(args: Arena) -> Application:
    """Return the application of an arena, for `serve.run` and `serve deploy` alike."""
    arena = prepare(Arena.model_validate(args.model_dump()))
    settings, shared = arena.drawers, arena.drawers.resident is not None
    groups = [arena.generators] if shared else [(entry,) for entry in arena.generators]
    generators: dict[str, Any] = {}
    for entries in groups:
        bound = serve.deployment(**actor_options(settings, entries))(Drawer).bind(entries, settings)
        generators |= {entry.name: bound for entry in entries}
    judge = None
    if arena.rewards.services:
        judge = serve.deployment(name="judge", ray_actor_options={"num_cpus": 0})(Judge).bind(arena.rewards)
    front = serve.deployment(
        name="door", num_replicas=arena.door.replicas, ray_actor_options={"num_cpus": 0}, max_ongoing_requests=100
    )
    identities = {entry.name: identity(entry) for entry in arena.generators}
    return front(serve.ingress()(Front)).bind(arena, identities, generators, judge)
