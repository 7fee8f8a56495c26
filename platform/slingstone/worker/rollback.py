"""Steps that cannot ruin a run: an explosion goes back to the last checkpoint and on with other noise."""

from collections.abc import Callable

from slingstone.checkpoints.manifest import Facts
from slingstone.checkpoints.saving import Checkpoints
from slingstone.config.recovery import ExplodingLoss
from slingstone.step.trainer import Trainer


class Rollback:
    """Takes the trainer's steps. All ranks see the same norms, and therefore go back together.

    Args:
        trainer: takes the steps.
        checkpoints: to go back to.
        settings: what counts as an explosion; None raises what the trainer raises.
        seed: of the run.
        told: is told of each return: what happened, and the images gone back to.
    """

    def __init__(
        self,
        trainer: Trainer,
        checkpoints: Checkpoints,
        settings: ExplodingLoss | None,
        seed: int,
        told: Callable[[str, int], None],
    ) -> None:
        self._trainer = trainer
        self._checkpoints = checkpoints
        self._settings = settings
        self._seed = seed
        self._told = told
        self._in_a_row = 0
        self._newest: str | None = None
        self.rollbacks = 0
        """How often training went back; part of a checkpoint."""

    def step(self) -> dict[str, float] | None:
        """Take a step and return its metrics, or go back and return None.

        Raises:
            FloatingPointError: an explosion that the run does not survive: there is nothing to go back to, or it
                happened too often.
        """
        if self._settings is None:
            return self._trainer.step()
        try:
            metrics = self._trainer.step()
            limit = self._settings.grad_norm
            for name in ("grad_norm/generator", "grad_norm/assistant"):
                if limit is not None and (norm := metrics.get(name, 0.0)) > limit:
                    raise FloatingPointError(f"{name} is {norm:.4g}, above recovery.exploding.grad_norm = {limit}")
        except FloatingPointError as error:
            self._go_back(error, self._settings.rollbacks)
            return None
        return metrics

    def _go_back(self, error: FloatingPointError, limit: int) -> None:
        newest = self._checkpoints.newest()
        self._in_a_row = self._in_a_row + 1 if newest == self._newest else 1
        self._newest = newest
        if newest is None or self._in_a_row > limit:
            reason = "there is no checkpoint yet" if newest is None else f"went back {limit} times already"
            raise FloatingPointError(f"{error}; {reason}") from error
        facts: Facts = self._checkpoints.restore_from(newest)
        self.rollbacks = max(self.rollbacks, facts.rollbacks) + 1
        # The same noise would explode again.
        rng = self._trainer.rng
        rng.manual_seed(self._seed * 65537 + self.rollbacks * 7919 + facts.images * 104729 + rng.initial_seed())
        self._told(str(error), facts.images)
