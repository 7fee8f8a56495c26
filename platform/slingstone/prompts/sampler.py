"""An endless, shuffled, shardable order of prompts whose position can be saved."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch


class PromptSampler(Iterator[list[str]]):
    """Endless batches of prompts; each epoch is a permutation of all of them.

    The global batch k is a window of one endless sequence, and a rank takes its slice of the window: the union over
    ranks does not depend on their number, and a run may resume with another one.

    Args:
        prompts: what to draw from.
        batch: size of the global batch; every rank gets `batch / world` prompts at a time.
        rank: which slice this sampler takes.
        world: number of slices.
        seed: of the permutations.
    """

    def __init__(self, prompts: Sequence[str], batch: int, rank: int = 0, world: int = 1, seed: int = 0):
        if not prompts:
            raise ValueError("prompts is empty; give at least one")
        if batch < 1 or batch % world:
            raise ValueError(f"batch is {batch}, must be a positive multiple of the {world} workers")
        if not 0 <= rank < world:
            raise ValueError(f"rank is {rank}, must lie in 0..{world - 1}")
        self.prompts = tuple(prompts)
        self.batch = batch
        self.rank = rank
        self.world = world
        self.seed = seed
        self.position = 0
        self._fingerprint = hashlib.sha256("\0".join(self.prompts).encode()).hexdigest()
        self._epoch = -1
        self._order: list[int] = []

    def __next__(self) -> list[str]:
        """Return this rank's slice of the next global batch."""
        size = self.batch // self.world
        start = self.position + self.rank * size
        self.position += self.batch
        return [self._prompt(place) for place in range(start, start + size)]

    def state_dict(self) -> dict[str, Any]:
        """Return the position, the same on every rank after the same number of batches."""
        return {"position": self.position, "seed": self.seed, "prompts": self._fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where another sampler was, of any rank, number of ranks and batch size.

        Raises:
            ValueError: if that sampler had other prompts or another seed, so that its position means nothing here.
        """
        if state["prompts"] != self._fingerprint:
            raise ValueError("the saved position belongs to other prompts; resume with the same prompts file")
        if state["seed"] != self.seed:
            raise ValueError(
                f"seed is {self.seed}, the saved position belongs to {state['seed']}; resume with that seed"
            )
        self.position = state["position"]

    def _prompt(self, place: int) -> str:
        epoch, index = divmod(place, len(self.prompts))
        if epoch != self._epoch:
            # A seed of its own for each epoch, so that any position is reached without drawing all that came before.
            digest = hashlib.sha256(f"{self.seed}/{epoch}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
            self._order = torch.randperm(len(self.prompts), generator=generator).tolist()
            self._epoch = epoch
        return self.prompts[self._order[index]]
