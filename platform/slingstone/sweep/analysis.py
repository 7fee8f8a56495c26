"""What the complete trials of a sweep say, by Optuna: which to take, and which of the varied values mattered."""

import math
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from slingstone.config import Sweep
from slingstone.config.sweep import Range, Uniform
from slingstone.config.tree import Metric
from slingstone.evaluation.ranking import rank
from slingstone.sweep.table import metrics_of
from slingstone.sweep.trials import as_text

FEWEST = 4
"""Trials below which a share of variance means nothing."""


def pareto_front(sweep: Sweep, complete: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the trials that no other beats in one objective without losing in another."""
    study = _study(["maximize"] * len(sweep.objectives))
    for trial in complete:
        values = [_rank(trial, entry) for entry in sweep.objectives]
        study.add_trial(optuna.trial.create_trial(values=values))
    return [complete[trial.number] for trial in study.best_trials]


def recommended(sweep: Sweep, complete: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the trial of the Pareto front with the best held-out signal."""
    return max(pareto_front(sweep, complete), key=lambda trial: _rank(trial, sweep.signal))


def importances(sweep: Sweep, complete: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return, for the signal and each objective, each path's share of the variance between trials.

    Args:
        sweep: what was varied.
        complete: the trials whose evaluations are alike; fewer than `FEWEST` give nothing.
    """
    return {metric: found for metric in metrics_of(sweep) if (found := _shares(sweep, complete, metric))}


def _rank(trial: dict[str, Any], entry: Metric) -> float:
    return rank(trial["metrics"].get(entry.metric), entry.mode)


def _shares(sweep: Sweep, trials: Sequence[dict[str, Any]], metric: str) -> dict[str, float]:
    found = [(trial["values"], trial["metrics"].get(metric, math.nan)) for trial in trials]
    scores = [(values, score) for values, score in found if math.isfinite(score)]
    if len(scores) < FEWEST or len({score for _, score in scores}) == 1:
        return {}
    study, space = _study(["maximize"]), {path: _distribution(values) for path, values in sweep.space.items()}
    for values, score in scores:
        study.add_trial(optuna.trial.create_trial(params=values, distributions=space, value=score))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


def _study(directions: Sequence[Any]) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(directions=directions)


def _distribution(values: Range) -> BaseDistribution:
    if isinstance(values, Uniform):
        return FloatDistribution(values.low, values.high, log=values.log)
    return CategoricalDistribution([as_text(value) for value in values.values])
