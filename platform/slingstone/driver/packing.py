"""Whether actors find room on nodes one by one: a part of a GPU lies on one GPU, and an actor on one node.

Imports neither torch nor ray.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

TRIES = 5_000
"""Placements that are tried before the question is left to Ray."""
ROUNDING = 1e-6


@dataclass(frozen=True)
class Actor:
    """What one worker or replica reserves.

    Attributes:
        gpu: a part of one GPU, or a number of whole ones.
        nodes: where it may run, as indices of the nodes.
    """

    cpu: int | float
    gpu: int | float
    nodes: frozenset[int]


@dataclass(frozen=True)
class Room:
    """What is free on one node: CPUs, and the free part of each GPU, in order."""

    cpu: int | float
    gpus: tuple[float, ...]

    def without(self, actor: Actor) -> Iterator["Room"]:
        """Yield what is left with the actor here, for each different GPU that it may take."""
        if actor.cpu > self.cpu + ROUNDING:
            return
        cpu = self.cpu - actor.cpu
        whole = [free for free in self.gpus if free > 1 - ROUNDING]
        if actor.gpu >= 1:
            if len(whole) >= actor.gpu:
                yield Room(cpu, self.gpus[: len(self.gpus) - round(actor.gpu)])
        elif not actor.gpu:
            yield Room(cpu, self.gpus)
        else:
            for free in dict.fromkeys(self.gpus):
                if free + ROUNDING >= actor.gpu:
                    rest = list(self.gpus)
                    rest.remove(free)
                    yield Room(cpu, tuple(sorted([*rest, round(free - actor.gpu, 6)])))


def fits(actors: Sequence[Actor], rooms: Sequence[Room]) -> bool:
    """Return whether all actors find room at once; True also where `TRIES` placements do not tell."""
    waiting = sorted(actors, key=lambda actor: (actor.gpu, actor.cpu), reverse=True)
    # Nodes that the same actors may use differ by nothing but what is free there.
    kinds = [frozenset(actor.nodes for actor in waiting if index in actor.nodes) for index in range(len(rooms))]
    stack, seen = [(0, tuple(rooms))], set()
    for _ in range(TRIES):
        if not stack:
            return False
        placed, held = stack.pop()
        if placed == len(waiting):
            return True
        state = placed, frozenset(Counter(zip(kinds, held, strict=True)).items())
        if state in seen:
            continue
        seen.add(state)
        ways = {
            (kinds[index], held[index], left): (index, left)
            for index in sorted(waiting[placed].nodes)
            for left in held[index].without(waiting[placed])
        }
        # The last pushed is tried first: where most of a GPU is used already.
        for index, left in sorted(ways.values(), key=lambda way: (sum(way[1].gpus), way[1].cpu), reverse=True):
            stack.append((placed + 1, (*held[:index], left, *held[index + 1 :])))
    return True
