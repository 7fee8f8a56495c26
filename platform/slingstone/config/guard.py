"""When a run is called off: rules on what its evaluations find, against the initial generator."""

from typing import Literal

from pydantic import PositiveInt, model_validator

from slingstone.config.tree import Metric, MetricName, Section


class Rule(Section):
    """One bound on one number of the evaluations during training."""

    metric: MetricName
    """Such as `rewards/imagereward` (held out), `utility`, `diversity`, `appearance/high_frequency`."""
    below: float | None = None
    """Broken by values below this bound."""
    above: float | None = None
    """Broken by values above this bound."""
    relative: Literal["ratio", "difference", "absolute"] = "ratio"
    """What bounds are: multiples of the initial generator's value on the same prompts and seeds, differences from it,
    or values. Numbers that may be negative, such as ImageReward's, want `difference`."""
    patience: PositiveInt = 1
    """So many evaluations in a row must break the rule before it acts."""
    action: Literal["warn", "stop", "roll_back"] = "warn"
    """`stop` ends the training with the present weights, `roll_back` with those of the best evaluation so far; either
    way the run goes on to its final evaluation and export."""

    @model_validator(mode="after")
    def _has_a_bound(self) -> "Rule":
        if self.below is None and self.above is None:
            raise ValueError("has no bound: give below, above or both")
        return self


class Guard(Section):
    """The watch over reward hacking; without rules it is off and costs nothing."""

    rules: tuple[Rule, ...] = ()
    """Checked at each evaluation during training, every `training.grid_every_images`."""
    best: Metric | None = None
    """Picks the evaluation that `roll_back` returns to, among those that break no rule, by a held-out number: none that
    is trained on. The training state of the best so far is kept beside the checkpoints, as large as one of them."""

    @property
    def rolls_back(self) -> bool:
        """Whether any rule returns to the best evaluation."""
        return any(rule.action == "roll_back" for rule in self.rules)
