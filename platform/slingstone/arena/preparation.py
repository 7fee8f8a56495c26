"""What would fail after the arena has started, found before. Imports neither torch nor ray."""

from collections.abc import Iterator
from pathlib import Path

from slingstone.compare.shards import absent_model, exported
from slingstone.config import Arena
from slingstone.config.comparison import AlignedRun
from slingstone.config.paths import resolved
from slingstone.driver import preflight
from slingstone.prompts.files import read_prompts
from slingstone.prompts.hub import local_copy


def prepare(arena: Arena) -> Arena:
    """Return the arena with absolute paths, prompts that are here, and runs that are there.

    Raises:
        ValueError: naming every file that is missing or is not what it should be.
        hub.HubAway: prompts of the hub cannot be had now.
    """
    found = resolved(arena)
    if found.skip_absent:
        there = tuple(one for one in found.generators if not isinstance(one, AlignedRun) or exported(one))
        found = found.model_copy(update={"generators": there})
    found = found.model_copy(update={"prompts": local_copy(found.prompts, (found.column,), found.storage)})
    if mistakes := list(_mistakes(found)):
        raise ValueError("\n".join(mistakes))
    return found


def directory(arena: Arena) -> Path:
    """Return where the arena keeps what it has."""
    return Path(arena.storage) / "arena" / arena.name


def votes_uri(arena: Arena) -> str:
    """Return the database of the votes."""
    return arena.votes or f"sqlite:///{directory(arena) / 'votes.db'}"


def _mistakes(arena: Arena) -> Iterator[str]:
    if not arena.generators:
        yield "generators: none of the runs has exported anything yet; finish one, or name a generator"
    for model in arena.generators:
        yield from absent_model(f"generators.{model.name}", model)
    try:
        read_prompts(arena.prompts, arena.column)
    except ValueError as error:
        yield f"prompts: {error}"
    yield from preflight.absent_rewards(arena.rewards)
