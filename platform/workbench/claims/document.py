"""The studies as a document for people: tables, pictures, seeds and the command."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from slingstone.tracking.provenance import git_commit
from workbench.claims.matching import BySeed, Mean, differences, matched, mean_of, targets
from workbench.claims.results import TRAINED, Results
from workbench.claims.settings import Study

PAIRED = (
    "Differences, seed by seed (a seed has the same prompts and noise in all arms, in training and evaluation; what "
    "they share cancels):"
)


def markdown(results: Results, command: str, pictures: dict[str, list[Path]]) -> str:
    """Return the document.

    Args:
        results: what is known so far.
        command: how it was made.
        pictures: of each study, as paths from the document.
    """
    claims, plan = results.plan.claims, results.plan
    done, seeds = len(results.found), ", ".join(map(str, claims.seeds))
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
        rows = [["run", "reason"], *([name, reason.replace("|", "/")] for name, reason in results.failed.items())]
        parts += ["## Runs that failed", table(rows)]
    return "\n\n".join(parts) + "\n"


def _study(results: Results, study: Study) -> Iterator[str]:
    yield table([["", *results.metrics, "seeds"], *_rows(results, study)])
    if study.matched:
        yield from _matched(results, study)
    elif len(groups := results.groups(study)) > 1:
        found = [{name: results.by_seed(cells, metric) for name, cells in groups.items()} for metric in results.metrics]
        if rows := list(_differences(found)):
            yield PAIRED
            yield table([["", *results.metrics], *rows])
    if rivals := results.rivals(study):
        names = [*results.metrics, "network_evaluations", "seconds_per_image"]
        rows = [["", *names]]
        for name in ("init", "aligned", *rivals):
            found = results.other(study, name)
            rows.append([name.replace("_", " "), *(cell(found.get(metric)) for metric in names)])
        yield table(rows)


def _rows(results: Results, study: Study) -> Iterator[list[str]]:
    start = results.other(study, "init")
    yield ["init", *(cell(start.get(metric)) for metric in results.metrics), ""]
    for name, cells in results.groups(study).items():
        known = sum(one.run in results.found for one in cells)
        yield [name, *(cell(results.mean(cells, metric)) for metric in results.metrics), str(known)]


def _matched(results: Results, study: Study) -> Iterator[str]:
    """Yield the arms at equal trained reward."""
    metrics = results.plan.claims.metrics
    trained, *curves = (results.curves(study, metric) for metric in (TRAINED, *metrics))
    levels = targets([curve for seeds in trained.values() for curve in seeds.values()])
    if not levels:
        yield "The arms have no range of trained reward in common yet."
        return
    yield (
        "At equal trained reward, linear between the weights that were tried, each seed for itself; the levels lie at "
        "one third, two thirds and the end of the range that all arms and seeds reach:"
    )
    rows, paired = [["trained reward", "arm", *metrics]], [["trained reward", "", *metrics]]
    for level in levels:
        found = [matched(arms, level) for arms in curves]
        rows += [[f"{level:.4g}", arm, *(cell(mean_of(column[arm].values())) for column in found)] for arm in trained]
        paired += [[f"{level:.4g}", *row] for row in _differences(found)]
    yield table(rows)
    if len(trained) > 1:
        yield PAIRED
        yield table(paired)


def _differences(columns: Sequence[Mapping[str, BySeed]]) -> Iterator[list[str]]:
    """Yield a row for every arm but the first: how far it is from that, a column a metric."""
    means = [differences(column) for column in columns]
    first = next(iter(columns[0]))
    for name in means[0]:
        row = [cell(column.get(name)) for column in means]
        if any(row):
            yield [f"{name} - {first}", *row]


def _trained(results: Results) -> str:
    run = next(iter(results.plan.runs.values()))
    return " + ".join(f"{entry.weight:g} {entry.name}" for entry in run.rewards.services if entry.weight > 0) or "none"


def cell(mean: Mean | None) -> str:
    """Return a number with its error, as a table shows it."""
    if mean is None:
        return ""
    return f"{mean.mean:.4g}" + ("" if mean.error is None else f" ± {mean.error:.2g}")


def table(rows: list[list[str]]) -> str:
    """Return rows, the first of headings, as Markdown."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
