"""Prompts of a comparison that are longer than what a model or a reward takes."""

from slingstone.compare.shards import files_of, grouped_prompts
from slingstone.config import Comparison
from slingstone.plan.cut_prompts import Counts, counted


def cut_prompts(comparison: Comparison) -> Counts:
    """Return the counts of every set, for each model's text encoders and each reward."""
    sets = {entry.name: list(grouped_prompts(entry)) for entry in comparison.prompts}
    pipelines = {model.name: files_of(model)[0] for model in comparison.models}
    return counted(sets, pipelines, [entry.spec for entry in comparison.rewards.services])
