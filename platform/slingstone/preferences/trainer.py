"""One step towards the votes, and what the reward says of held-out ones; it does not know where it runs."""

import time
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from slingstone.preferences.accuracy import Judged
from slingstone.preferences.judge import Judge
from slingstone.preferences.losses import LOSSES
from slingstone.preferences.store import Batch, Loader, Stream, VoteStore, judged_of
from slingstone.step.trainer import Engine


class PreferenceTrainer:
    """Fits a judge to votes through an engine; its state is a position and the validations so far.

    Args:
        engine: around the judge.
        judge: the whole module, of which the engine may hold the part that learns.
        stream: this rank's votes.
        loss: name of a loss.
        parts: in which a step is computed.
    """

    def __init__(self, engine: Engine, judge: Judge, stream: Stream, loss: str, parts: int) -> None:
        self.engine, self.judge, self.stream = engine, judge, stream
        self.loss, self.parts = LOSSES[loss], parts
        self.history: list[tuple[int, float]] = []

    @property
    def votes(self) -> int:
        """How many votes were trained on."""
        return self.stream.sampler.position

    def step(self) -> dict[str, float]:
        """Train on a batch; return its loss, accuracy and the gradient's norm on this rank. A collective."""
        start = time.perf_counter()
        self.judge.train()
        batch = next(self.stream)
        device = next(self.judge.parameters()).device
        total = batch.weights.sum(dim=1).to(torch.float64)
        if dist.is_initialized():
            dist.all_reduce(total)
            total /= dist.get_world_size()  # the engine averages over ranks
        losses, right, chose = 0.0, 0.0, 0.0
        for part in _parts(batch, self.parts):
            scores, log_ties = self._scores(part, device)
            labels, weights = part.labels.to(device), part.weights.to(device)
            each = self.loss(scores, labels, log_ties)
            loss = (each * weights / total.clamp(min=1e-12).to(device, torch.float32)[:, None]).sum()
            self.engine.backward(loss)
            losses += loss.item()
            decided = labels[0] != labels[1]
            gap = scores.detach().mean(dim=0)
            right += float(((gap[0] > gap[1]) == (labels[0] > labels[1]))[decided].sum())
            chose += float(decided.sum())
        norm = self.engine.step()
        found = {"loss/votes": losses, "grad_norm/reward": norm, "seconds/step": time.perf_counter() - start}
        return found | {"accuracy/training": right / chose if chose else 0.5}

    def _scores(self, batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
        logits = self.engine(batch.pictures.to(device), batch.prompts).float()
        if not bool(logits.detach().isfinite().all()):
            raise FloatingPointError("the reward's scores are not finite; lower training.optimizer.lr")
        return logits[:, :-1].unflatten(1, (2, -1)), logits[0, -1]

    @torch.no_grad()
    def judged(self, store: VoteStore, loader: Loader, batch: int) -> Judged:
        """Score all votes of a store, each rank its share; the heads' mean. A collective."""
        self.judge.eval()
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        device = next(self.judge.parameters()).device
        # As many passes on every rank: a sharded engine's are collectives.
        own = [index % len(store) for index in range(rank, -(-len(store) // world) * world, world)]
        found: list[Tensor] = []
        for start in range(0, len(own), batch):
            scores, _ = self._scores(loader.load(own[start : start + batch]), device)
            found.append(scores.mean(dim=0).double().cpu())
        parts: list[Any] = [None] * world
        if world > 1:
            dist.all_gather_object(parts, torch.cat(found, dim=1).numpy())
        else:
            parts = [torch.cat(found, dim=1).numpy()]
        scores = np.empty((2, len(store)))
        for place, values in enumerate(parts):
            mine = range(place, len(store), world)
            scores[:, mine] = values[:, : len(mine)]
        return judged_of(store, scores)

    def state_dict(self) -> dict[str, Any]:
        """Return the validations so far; the position is the sampler's."""
        return {"history": [list(entry) for entry in self.history]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self.history = [(int(votes), float(rate)) for votes, rate in state["history"]]


def _parts(batch: Batch, count: int) -> list[Batch]:
    """Cut a batch into equal parts, each with both pictures of its votes."""
    votes = len(batch.prompts)
    size = votes // count
    pairs = batch.pictures.unflatten(0, (2, votes))
    return [
        Batch(
            pairs[:, start : start + size].flatten(0, 1),
            batch.prompts[start : start + size],
            batch.labels[:, start : start + size],
            batch.weights[:, start : start + size],
        )
        for start in range(0, votes, size)
    ]
