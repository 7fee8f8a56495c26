"""The studies as a document for people: tables, pictures, seeds and the command."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from tabulate import tabulate

from slingstone.tracking.provenance import git_commit
from workbench.claims.plan import Study
from workbench.claims.results import SPEED, TRAINED, Results, Table, by_seed, differences, levels, matched, over_seeds

PAIRED = (
    "Differences, seed by seed (a seed has the same prompts and noise in all arms, in training and evaluation; what "
    "they share cancels):"
)


def markdown(results: Results, command: str, pictures: dict[str, list[Path]]) -> str:
    """Return what is known so far, the command that found it, and the pictures of each study by paths from here."""
    claims, plan = results.plan.claims, results.plan
    done = results.found.dropna(subset=[TRAINED])["run"].nunique()
    seeds = ", ".join(map(str, claims.seeds))
    parts = [
        f"# Claims: {claims.name}",
        f"Written by `{command}` at commit `{git_commit()}`; do not edit. {done} of {len(plan.runs)} runs are done"
        + (f", {len(results.failed)} failed" if results.failed else "")
        + f"; seeds {seeds}. Every number is the mean over the seeds ± its standard error, of the averaged generator "
        "at the end of a run, on held-out prompts. The trained reward is the weighted sum that the generator was "
        f"trained for: {_trained(results)}.",
    ]
    for study in claims.studies:
        parts += [f"## {study.title}"]
        parts += [study.claim] * bool(study.claim)
        parts += _study(results, study)
        parts += [f"![{study.title}]({path.as_posix()})" for path in pictures.get(study.name, [])]
        parts += [study.discussion] * bool(study.discussion)
    if results.failed:
        reasons: Table = pd.Series(results.failed).str.replace("|", "/", regex=False)
        parts += ["## Runs that failed", table(["run", "reason"], reasons.to_frame())]
    return "\n\n".join(parts) + "\n"


def _study(results: Results, study: Study) -> Iterator[str]:
    metrics = results.metrics
    groups = by_seed(results.aligned(study), "group", metrics)
    evaluations = text(by_seed(results.of(study), "evaluation", [*metrics, *SPEED]))
    done = groups[TRAINED].groupby(level=0).count().astype(str)
    start = evaluations.reindex(["init"])[metrics]
    yield table(["", *metrics, "seeds"], pd.concat([start, text(groups).assign(seeds=done)]).fillna(""))
    if study.matched:
        yield from _matched(results, study)
    elif len(paired := _paired(groups)):
        yield PAIRED
        yield table(["", *metrics], paired)
    if rivals := sorted(name for name in evaluations.index if name.startswith("reference_")):
        shown = evaluations.reindex(["init", "aligned", *rivals]).fillna("")
        yield table(["", *shown.columns], shown.rename(lambda name: name.replace("_", " ")))


def _matched(results: Results, study: Study) -> Iterator[str]:
    """Yield the arms at equal trained reward."""
    metrics = list(results.plan.claims.metrics)
    points = results.aligned(study).dropna(subset=[TRAINED]).set_index(["arm", "seed"])[results.metrics]
    found = {f"{level:.4g}": matched(points, level)[metrics] for level in levels(points[TRAINED])}
    if not found:
        yield "The arms have no range of trained reward in common yet."
        return
    yield (
        "At equal trained reward, linear between the weights that were tried, each seed for itself; the levels lie at "
        "one third, two thirds and the end of the range that all arms and seeds reach:"
    )
    arms, paired = (pd.concat({level: show(one) for level, one in found.items()}) for show in (text, _paired))
    yield table(["trained reward", "arm", *metrics], arms.reset_index())
    if len(paired):
        yield PAIRED
        yield table(["trained reward", "", *metrics], paired.reset_index())


def _paired(numbers: Table) -> Table:
    """Return how far every name but the first is from that, as text, if they have a seed in common."""
    first, shown = numbers.index[0][0], text(differences(numbers))
    return shown[(shown != "").any(axis=1)].rename(lambda name: f"{name} - {first}")


def _trained(results: Results) -> str:
    run = next(iter(results.plan.runs.values()))
    return " + ".join(f"{entry.weight:g} {entry.name}" for entry in run.rewards.services if entry.weight > 0) or "none"


def text(numbers: Table) -> Table:
    """Return the means over seeds with their errors, by name, as a table shows them."""
    mean, error = over_seeds(numbers)
    return pd.DataFrame(np.vectorize(_cell, otypes=[object])(mean, error), mean.index, mean.columns)


def _cell(mean: float, error: float) -> str:
    if math.isnan(mean):
        return ""
    return f"{mean:.4g}" + ("" if math.isnan(error) else f" ± {error:.2g}")


def table(headings: Sequence[str], rows: Table) -> str:
    """Return rows as Markdown; names that stand in the index come first."""
    index = not isinstance(rows.index, pd.RangeIndex)
    return tabulate(rows, headings, "pipe", showindex=index, disable_numparse=True, stralign=None)
