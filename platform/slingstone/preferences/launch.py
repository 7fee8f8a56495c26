"""The driver of a fitting: check the votes, copy them to where workers read them, train, and say what came out."""

import json
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import ray

from slingstone import atomic, tracking
from slingstone.checkpoints.run_directory import RunDirectory, newest
from slingstone.config import RewardFit, flatten
from slingstone.driver import placement, run_lease
from slingstone.driver.cluster import connect
from slingstone.driver.launch import survived, tracked
from slingstone.preferences.census import Census
from slingstone.preferences.locations import read
from slingstone.preferences.splits import held_out
from slingstone.preferences.store import VoteStore
from slingstone.preferences.table import Preference, stop


def fit(fitting: RewardFit, say: Callable[[str], None]) -> dict[str, Any]:
    """Fit a reward on the cluster that this process has joined, or else joins; return what summary.json holds.

    Args:
        fitting: with absolute paths, see `preflight.prepare`.
        say: shows a line to the user.

    Raises:
        ValueError: what the user can mend, before anything is held.
        RunFailed: training did not come to its end.
        SystemExit: SIGTERM came; the same name continues.
    """
    history = RunDirectory(Path(fitting.storage) / fitting.job / fitting.name)
    with run_lease.held(history.directory, say):
        return _fit(fitting, history, say)


def _fit(fitting: RewardFit, history: RunDirectory, say: Callable[[str], None]) -> dict[str, Any]:
    history.check(fitting)
    if (done := history.summary) is not None and done["config"] == flatten(fitting):
        say(f"{fitting.name} is complete: delete {history.directory} or give another name to start afresh")
        _conclude(done, history, say)
        return done
    start = time.monotonic()
    copy_votes(fitting, history.directory, say)
    uri = tracking.ready(fitting)
    if not ray.is_initialized():
        connect(fitting.runtime.threads_per_worker, fitting.runtime.open_cluster)
    placement.check(fitting, ray.nodes())
    with tracked(fitting, uri, history, say) as run:
        results = survived(fitting, _rank, history, run, say)
        facts = {"name": fitting.name, "mlflow_run_id": run.run_id, "mlflow_uri": tracking.redacted(uri)}
        facts |= {"seconds": round(time.monotonic() - start, 1), "config": flatten(fitting)}
        run.artifact(history.end(results | facts))
        run.artifact(history.directory / "reward", "reward")
    _conclude(results | facts, history, say)
    return results | facts


def copy_votes(fitting: RewardFit, directory: Path, say: Callable[[str], None]) -> None:
    """Copy the votes to train on and the held-out ones to `train.arrow` and `test.arrow`, unless they are there.

    Raises:
        ValueError: votes that cannot be read, of which nothing can be learnt, or of prompts that both sides have.
    """
    votes, sides, marker = fitting.votes, ("train", "test"), directory / "votes.json"
    same = atomic.read_json(marker) == votes.model_dump(mode="json")
    if same and newest(fitting) is not None:
        return  # the checkpoint knows these votes
    skipped: list[ValueError] = []
    bad = skipped.append if votes.on_bad_row == "skip" else stop
    census = {side: Census() for side in sides}

    def taken(side: str) -> Iterator[Preference]:
        found = read(votes.train if side == "train" or votes.test is None else votes.test, bad)
        if votes.test is None:
            held = side == "test"
            found = (vote for vote in found if held_out(vote.prompt, votes.held_out) == held)
        for vote in islice(found, votes.limit if side == "train" else None):
            census[side].take(vote)
            yield vote

    for side in sides:
        VoteStore.write(directory / f"{side}.arrow", taken(side))
        census[side].refuse_useless(f"votes.{side if votes.test else 'train'}, {side} side")
    if both := census["train"].shared_prompts(census["test"]):
        raise ValueError(
            f"votes.test = {votes.test!r}: {both} of its prompts are in votes.train, too; split by prompt, as "
            "`slingstone votes split` does"
        )
    atomic.write_text(marker, json.dumps(votes.model_dump(mode="json")))
    for error in skipped[:3]:
        say(f"skipped {error}")
    told = f" (skipped {len(skipped)} bad rows)" if skipped else ""
    say(f"{census['train'].votes} votes to learn from, {census['test'].votes} held out{told}")


def _rank(config: dict[str, Any]) -> dict[str, Any]:
    from slingstone.preferences.worker import fit  # here, since Ray's controller loads this function too

    return fit(config)


def _conclude(summary: dict[str, Any], history: RunDirectory, say: Callable[[str], None]) -> None:
    found, calibration, reward = summary["accuracy"], summary["calibration"], history.directory / "reward"
    model = json.loads((reward / "reward.json").read_text())["model"]
    say(f"\n{found['rate']:.3f} of {found['votes']} held-out votes ({found['low']:.3f} to {found['high']:.3f})")
    say(f"reward    {reward}")
    say("in a run  rewards.services:")
    normalisation = f"{{kind: fixed, mean: {calibration['mean']:.4g}, std: {calibration['std']:.4g}}}"
    say(f"            - {{name: {model}, model: {model}, checkpoint: {reward}, normalisation: {normalisation}}}")
