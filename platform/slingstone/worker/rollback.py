"""Steps that cannot ruin a run: an explosion goes back to the last checkpoint and on with other noise."""

from collections.abc import Callable
from dataclasses import dataclass, field

from slingstone.checkpoints.saving import Checkpoints
from slingstone.config.recovery import ExplodingLoss
from slingstone.step.trainer import Trainer


@dataclass
class Rollback:
    """Takes the trainer's steps. All ranks see the same norms, and therefore go back together.

    Attributes:
        settings: what counts as an explosion; None never goes back.
        told: is told of each return: what happened, and the images gone back to.
        rollbacks: how often training went back; part of a checkpoint.
    """

    trainer: Trainer
    checkpoints: Checkpoints
    settings: ExplodingLoss | None
    seed: int
    told: Callable[[str, int], None]
    rollbacks: int = 0
    _in_a_row: int = field(default=0, init=False)
    _newest: str | None = field(default=None, init=False)

    def step(self) -> dict[str, float] | None:
        """Take a step and return its metrics, or go back and return None.

        Raises:
            FloatingPointError: an explosion that the run does not survive: there is nothing to go back to, or it
                happened too often.
        """
        if self.settings is None:
            return self.trainer.step()
        try:
            metrics = self.trainer.step()
            limit = self.settings.grad_norm
            for name in ("grad_norm/generator", "grad_norm/assistant"):
                if limit is not None and (norm := metrics.get(name, 0.0)) > limit:
                    raise FloatingPointError(f"{name} is {norm:.4g}, above recovery.exploding.grad_norm = {limit}")
        except FloatingPointError as error:
            self._go_back(error, self.settings.rollbacks)
            return None
        return metrics

    def _go_back(self, error: FloatingPointError, limit: int) -> None:
        newest = self.checkpoints.newest()
        self._in_a_row = self._in_a_row + 1 if newest == self._newest else 1
        self._newest = newest
        if newest is None or self._in_a_row > limit:
            reason = "there is no checkpoint yet" if newest is None else f"went back {limit} times already"
            raise FloatingPointError(f"{error}; {reason}") from error
        facts = self.checkpoints.restore_from(newest)
        self.rollbacks = max(self.rollbacks, facts.rollbacks) + 1
        # The same noise would explode again.
        rng = self.trainer.rng
        rng.manual_seed(self.seed * 65537 + self.rollbacks * 7919 + facts.images * 104729 + rng.initial_seed())
        self.told(str(error), facts.images)
