"""The studies as a document for people: tables, pictures, seeds and the command."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tabulate import tabulate

from slingstone.tracking.provenance import git_commit
from workbench.claims.plan import Study
from workbench.claims.results import TRAINED, BySeed, Mean, Results, differences, matched, mean_of, targets

PAIRED = (
    "Differences, seed by seed (a seed has the same prompts and noise in all arms, in training and evaluation; what "
    "they share cancels):"
)


def markdown(results: Results, command: str, pictures: dict[str, list[Path]]) -> str:
    """Return what is known so far, the command that found it, and the pictures of each study by paths from here."""
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
        rows = [[name, reason.replace("|", "/")] for name, reason in results.failed.items()]
        parts += ["## Runs that failed", table(["run", "reason"], rows)]
    return "\n\n".join(parts) + "\n"


def _study(results: Results, study: Study) -> Iterator[str]:
    groups, metrics = results.groups(study), results.metrics
    rows = [["init", *(cell(results.mean(results.cells(study), metric, "init")) for metric in metrics), ""]]
    for name, cells in groups.items():
        done = sum(one.run in results.found for one in cells)
        rows.append([name, *(cell(results.mean(cells, metric)) for metric in metrics), str(done)])
    yield table(["", *metrics, "seeds"], rows)
    if study.matched:
        yield from _matched(results, study)
    else:
        found = [{name: results.by_seed(cells, metric) for name, cells in groups.items()} for metric in metrics]
        if rows := list(_differences(found)):
            yield PAIRED
            yield table(["", *metrics], rows)
    if rivals := results.rivals(study):
        names = [*metrics, "network_evaluations", "seconds_per_image"]
        rows = [
            [rival.replace("_", " "), *(cell(results.mean(results.cells(study), name, rival)) for name in names)]
            for rival in ("init", "aligned", *rivals)
        ]
        yield table(["", *names], rows)


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
    rows, paired = [], []
    for level in levels:
        found = [matched(arms, level) for arms in curves]
        rows += [[f"{level:.4g}", arm, *(cell(mean_of(column[arm].values())) for column in found)] for arm in trained]
        paired += [[f"{level:.4g}", *row] for row in _differences(found)]
    yield table(["trained reward", "arm", *metrics], rows)
    if paired:
        yield PAIRED
        yield table(["trained reward", "", *metrics], paired)


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


def table(headings: list[str], rows: list[list[str]]) -> str:
    """Return rows as Markdown."""
    return tabulate(rows, headings, "pipe", disable_numparse=True, stralign=None)
