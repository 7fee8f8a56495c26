"""Rewards side by side on people's votes: accuracy by split of the votes, calibration, and where each is most wrong."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from reward_services import models
from reward_services.protocol import RewardModel
from slingstone import atomic, tracking
from slingstone.config import RewardComparison, flatten
from slingstone.evaluation.grids import CELL, from_picture, prompt_grid
from slingstone.evaluation.table import markdown_table
from slingstone.preferences.accuracy import Accuracy, Judged, accuracy, by, calibrated, reliability
from slingstone.preferences.census import Census
from slingstone.preferences.locations import read
from slingstone.preferences.store import VoteStore, judged_of
from slingstone.preferences.table import decoded, stop


def compare(comparison: RewardComparison, say: Callable[[str], None]) -> dict[str, Any]:
    """Judge rewards by votes, in this process; return the numbers, which results.json holds.

    Raises:
        ValueError: votes or a reward that cannot be read.
    """
    directory = Path(comparison.storage) / "evaluate" / comparison.name
    uri = tracking.ready(comparison)
    rewards = {entry.name: models.load(entry.spec) for entry in comparison.rewards.services}
    results: dict[str, Any] = {}
    reports = [f"# {comparison.name}: rewards against votes\n"]
    for name, path in [(entry.name, entry.path) for entry in comparison.votes]:
        census, skipped = Census(), list[ValueError]()

        def counted(path: str = path, census: Census = census, skipped: list[ValueError] = skipped) -> Any:
            for vote in read(path, skipped.append if comparison.on_bad_row == "skip" else stop):
                census.take(vote)
                yield vote

        store = VoteStore.write(directory / f"{name}.arrow", counted())
        census.refuse_useless(f"{name} = {path}")
        found = {reward: judged_by(model, store) for reward, model in rewards.items()}
        draw_reliability(found, directory / f"{name}-reliability.png")
        for reward, judged in found.items():
            sheet(store, judged, comparison.sheet_pairs).save(directory / f"{name}-{reward}-wrong.png")
        results[name] = {reward: numbers(judged) for reward, judged in found.items()}
        reports.append(report(name, results[name], census, len(skipped)))
    table = "\n".join(reports)
    atomic.write_text(directory / "results.json", json.dumps(results, indent=1))
    atomic.write_text(directory / "rewards.md", table)
    tags = {"kind": "evaluate rewards", "directory": str(directory)}
    root = Path(comparison.storage)
    run = tracking.create_run(uri, comparison.tracking.experiment, comparison.name, flatten(comparison), tags, root)
    for name, rows in results.items():
        run.metrics({f"{name}/{reward}/accuracy": values["all"][0] for reward, values in rows.items()}, 0)
    for file in ("results.json", "rewards.md", *(path.name for path in directory.glob("*.png"))):
        run.artifact(directory / file)
    run.end("FINISHED")
    say(f"{table}\nwritten   {directory}")
    return results


@torch.no_grad()
def judged_by(model: RewardModel, store: VoteStore, batch: int = 16) -> Judged:
    """Return what a reward says of all votes; pictures of one size are scored together."""
    scores = np.empty((2, len(store)))
    for start in range(0, len(store), batch):
        sizes: dict[Any, list[tuple[int, int, str, torch.Tensor]]] = {}
        for place in range(start, min(start + batch, len(store))):
            row = store.row(place)
            for side in (0, 1):
                picture = from_picture(decoded(row[f"jpg_{side}"]))
                sizes.setdefault(picture.shape, []).append((side, place, row["caption"], picture))
        for entries in sizes.values():
            sides, places, prompts, pictures = zip(*entries, strict=True)
            scores[list(sides), list(places)] = model.score(torch.stack(pictures), list(prompts)).double().numpy()
    return judged_of(store, scores)


def numbers(judged: Judged) -> dict[str, Any]:
    """Return what is told of one reward: accuracies as rate, low, high and votes; calibration; reliability."""
    fit = calibrated(judged)
    found: dict[str, Any] = {"all": accuracy(judged), "models": by(judged, judged.models)}
    found |= {"voters": by(judged, judged.voters), "calibration": fit._asdict()}
    return found | {"reliability": reliability(judged, fit.temperature)}


def report(name: str, rows: Mapping[str, dict[str, Any]], census: Census, skipped: int) -> str:
    """Return a Markdown section on one set of votes."""
    agreement = "unknown, no pair has two voters" if census.agreement is None else f"{census.agreement:.3f}"
    pairs = list(dict.fromkeys(pair for values in rows.values() for pair in values["models"]))[:6]
    table = [["reward", "accuracy", "voters: worst to best", "temperature", *pairs]]
    for reward, values in rows.items():
        voters = [found.rate for found in values["voters"].values()]
        spread = f"{min(voters):.3f} to {max(voters):.3f}" if voters else "-"
        cells = [_shown(values["models"].get(pair)) for pair in pairs]
        table.append([reward, _shown(values["all"]), spread, f"{values['calibration']['temperature']:.3g}", *cells])
    lines = [
        f"## {name}\n",
        f"{census.votes} votes, {skipped} bad rows skipped. Voters agree with each other: {agreement}.",
    ]
    return "\n".join([*lines, "", markdown_table(table), ""])


def draw_reliability(found: Mapping[str, Judged], path: Path) -> None:
    """Draw by reward how often voters chose the first picture, over how probable the reward took that to be."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="lightgray")
    for name, judged in found.items():
        foretold, share, _ = zip(*reliability(judged, calibrated(judged).temperature), strict=True)
        axes.plot(foretold, share, marker="o", label=name)
    axes.set_xlabel("foretold probability that the first is chosen")
    axes.set_ylabel("share of voters who chose it")
    axes.legend()
    figure.savefig(path, dpi=110)


def sheet(store: VoteStore, judged: Judged, pairs: int) -> Image.Image:
    """Draw the pairs on which a reward is most wrong: what the voter chose beside what the reward prefers."""
    against = np.where(judged.decided, -judged.gap * (judged.labels[0] - judged.labels[1]), -np.inf)
    rows = [store.row(int(place)) for place in np.argsort(-against)[:pairs] if against[place] > 0] or [store.row(0)]
    sides = [int(row["label_1"] > row["label_0"]) for row in rows]
    columns = {"voter": sides, "reward": [1 - side for side in sides]}
    drawn = {
        name: torch.stack([_square(row[f"jpg_{side}"]) for row, side in zip(rows, chosen, strict=True)])
        for name, chosen in columns.items()
    }
    return prompt_grid(drawn, [row["caption"][:300] for row in rows])


def _square(data: bytes) -> torch.Tensor:
    return from_picture(decoded(data).resize((CELL, CELL)))


def _shown(found: Accuracy | None) -> str:
    return "-" if found is None else f"{found.rate:.3f} ({found.low:.3f} to {found.high:.3f}, {found.votes})"
