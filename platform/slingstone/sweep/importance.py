"""Which of the varied values mattered: functional analysis of variance by Optuna."""

from collections.abc import Sequence
from typing import Any

from slingstone.config import Sweep
from slingstone.config.sweep import Uniform
from slingstone.sweep.trials import as_text

FEWEST = 4
"""Trials below which a share of variance means nothing."""


def importances(sweep: Sweep, trials: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return, for the signal and each objective, each path's share of the variance between trials.

    Args:
        sweep: what was varied.
        trials: those that came to their end, whose evaluations are alike; fewer than `FEWEST` give nothing.
    """
    metrics = dict.fromkeys([sweep.signal.metric, *(entry.metric for entry in sweep.objectives)])
    return {metric: found for metric in metrics if (found := _shares(sweep, trials, metric))}


def _shares(sweep: Sweep, trials: Sequence[dict[str, Any]], metric: str) -> dict[str, float]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    seen = [trial for trial in trials if metric in trial["metrics"]]
    if len(seen) < FEWEST or len({trial["metrics"][metric] for trial in seen}) == 1:
        return {}
    study = optuna.create_study()
    for trial in seen:
        study.add_trial(
            optuna.trial.create_trial(
                params=trial["values"],
                distributions={path: _distribution(values) for path, values in sweep.space.items()},
                value=trial["metrics"][metric],
            )
        )
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


def _distribution(values: Any) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if isinstance(values, Uniform):
        return FloatDistribution(values.low, values.high, log=values.log)
    return CategoricalDistribution([as_text(value) for value in values.values])
