"""The training loop that all networks of the world share."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from tqdm import trange

from workbench.recipe.settings import Training


def fit(
    weights: list[nn.Parameter],
    loss_at: Callable[[int], Tensor],
    settings: Training,
    name: str,
    weight_decay: float = 0.01,
    warm_up: float = 0.05,
    after_step: Callable[[], object] = lambda: None,
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
    """
    optimizer = torch.optim.AdamW(weights, lr=settings.learning_rate, weight_decay=weight_decay)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, settings.steps, pct_start=warm_up)
    progress = trange(settings.steps, desc=name, mininterval=10)
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
