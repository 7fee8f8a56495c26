"""The training loop that all networks of the world share."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import trange

from slingstone.atomic import replacing
from workbench.recipe.settings import Training


def fit(
    weights: list[nn.Parameter],
    loss_at: Callable[[int], Tensor],
    settings: Training,
    name: str,
    weight_decay: float = 0.01,
    warm_up: float = 0.05,
    after_step: Callable[[], object] = lambda: None,
    kept: Path | None = None,
    keep: nn.Module | None = None,
    streams: Sequence[torch.Generator] = (),
) -> None:
    """Minimise the loss of each step with AdamW, clipped gradients and one cycle of the learning rate.

    Args:
        weights: what is trained.
        loss_at: the loss of a step, by its number.
        settings: how long and how fast.
        name: what the progress bar says.
        weight_decay: of AdamW.
        warm_up: share of the steps in which the learning rate rises.
        after_step: called after each.
        kept: file for the state of the training, written now and then; a fit that finds it goes on from there.
        keep: what else belongs to that state, such as an average of the weights.
        streams: random numbers of the loss beside torch's own, which belong to it as well.
    """
    optimizer = torch.optim.AdamW(weights, lr=settings.learning_rate, weight_decay=weight_decay)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, settings.steps, pct_start=warm_up)
    state = _State(weights, optimizer, cycle, keep, streams)
    done = state.read(kept) if kept and kept.exists() else 0
    progress = trange(done, settings.steps, initial=done, total=settings.steps, desc=name, mininterval=10)
    for step in progress:
        loss = loss_at(step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        cycle.step()
        after_step()
        if step % 50 == 0:
            progress.set_postfix(loss=f"{loss.item():.4f}")
        if kept and (step + 1) % settings.keep_every == 0:
            state.write(kept, step + 1)


class _State:
    """All that a fit needs to go on as if it had not stopped."""

    def __init__(
        self,
        weights: list[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        cycle: torch.optim.lr_scheduler.LRScheduler,
        keep: nn.Module | None,
        streams: Sequence[torch.Generator],
    ):
        self._weights = weights
        self._streams = [torch.default_generator, *streams]
        self._parts = {"optimizer": optimizer, "cycle": cycle} | ({"keep": keep} if keep else {})

    def write(self, path: Path, step: int) -> None:
        """Write the state after a number of steps."""
        state = {name: part.state_dict() for name, part in self._parts.items()}
        state |= {"step": step, "weights": [weight.data for weight in self._weights]}
        state["streams"] = [stream.get_state() for stream in self._streams]
        with replacing(path) as partial:
            torch.save(state, partial)

    def read(self, path: Path) -> int:
        """Take the state over; return after how many steps it was written."""
        state = torch.load(path, weights_only=True)
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
        for weight, written in zip(self._weights, state["weights"], strict=True):
            weight.data.copy_(written)
        for stream, written in zip(self._streams, state["streams"], strict=True):
            stream.set_state(written)
        return state["step"]
