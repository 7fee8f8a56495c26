"""What an earlier run of the same name left in its directory, and whether this one may continue it."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from reward_services.contents import local_path
from reward_services.identity import identity
from slingstone import atomic
from slingstone.checkpoints.store import open_store
from slingstone.config import Experiment, TrainingJob, flatten, load_as, to_yaml
from slingstone.config.paths import of_sources
from slingstone.config.tree import Section
from slingstone.tracking import redacted
from slingstone.tracking.provenance import sources

MAY_CHANGE = (
    "training.num_images",
    "training.num_votes",
    "training.patience",
    "training.checkpoint_every_images",
    "training.grid_every_images",
    "training.keep_checkpoints",
    "training.keep_best",
    "recovery.",
    "runtime.threads_per_worker",
    "placement.",
    "rewards.lifecycle",
    "rewards.url",
    "rewards.on_failure",
    "rewards.drops_in_a_row",
    "guard.",
    "tracking.",
)
"""Keys, or beginnings of keys, that do not change what a continued run computes."""

BEST = "guard/best"
"""Where the state lies that the guard may return to, in a run's directory."""


def checkpoints(experiment: TrainingJob) -> str:
    """Return where a run's checkpoints lie."""
    root = (experiment.recovery.checkpoints or experiment.storage).rstrip("/")
    return f"{root}/{experiment.job}/{experiment.name}/checkpoints"


def newest(experiment: TrainingJob) -> str | None:
    """Return the name of a run's newest checkpoint."""
    return next(reversed(open_store(checkpoints(experiment)).names()), None)


def refuse_other(where: str, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Refuse to continue what lies `where` with another configuration, where that would change what is computed.

    Raises:
        ValueError: naming the keys that differ, and those that may.
    """
    both = {key: (before.get(key, "absent"), now.get(key, "absent")) for key in sorted(before.keys() | now.keys())}
    differing = [
        f"{key} ({old} -> {new})"
        for key, (old, new) in both.items()
        if of_sources(old) != of_sources(new) and not key.startswith(MAY_CHANGE) and not key.endswith(".application")
    ]
    if differing:
        may = ", ".join(key + "*" if key.endswith(".") else key for key in MAY_CHANGE)
        raise ValueError(
            f"{where} holds a run that differs in {', '.join(differing)}; give this run another name, or delete that;"
            f" only these may change on the way: {may}"
        )


@dataclass(frozen=True)
class RunDirectory:
    """The directory of a run, `<storage>/<job>/<name>`."""

    directory: Path

    @property
    def summary(self) -> dict[str, Any] | None:
        """The summary of a run that came to its end; one that is cut short is written again by a last evaluation."""
        return atomic.read_json(self.directory / "summary.json")

    def complete(self, experiment: Experiment) -> bool:
        """Tell whether nothing is left of a run: it came to its end, or its guard called it off."""
        done = self.summary
        return done is not None and ("guard" in done or done["images"] >= experiment.training.num_images)

    def mlflow_run(self, uri: str) -> str | None:
        """Return the id of the MLflow run to continue, if there was one in the same store."""
        saved = atomic.read_json(self.directory / "mlflow.json") or {}
        return saved.get("run_id") if saved.get("uri") == redacted(uri) else None

    def check(self, experiment: TrainingJob) -> None:
        """Refuse to continue a run of another configuration; forget one that has no checkpoint to continue from.

        Raises:
            ValueError: naming the keys that differ.
        """
        path, kind = self.directory / "config.yaml", cast("type[Section]", type(experiment))
        before = cast("TrainingJob", load_as(kind, path)) if path.is_file() else None
        if newest(experiment) is not None:
            if before is not None:
                known, now = self._contents_then(), _contents(experiment)
                both = known.keys() & now.keys()
                refuse_other(
                    f"name = {experiment.name!r}: {self.directory}",
                    flatten(before) | {key: known[key] for key in both},
                    flatten(experiment) | {key: now[key] for key in both},
                )
            return
        if before is not None and newest(before) is not None:
            raise ValueError(
                f"recovery.checkpoints = {experiment.recovery.checkpoints!r}: those of {experiment.name!r} lie in"
                f" {checkpoints(before)}; name that place, or move them to {checkpoints(experiment)}"
            )
        for name in ("config.yaml", "mlflow.json"):
            (self.directory / name).unlink(missing_ok=True)
        for name in ("evaluation", "guard"):
            shutil.rmtree(self.directory / name, ignore_errors=True)

    def begin(self, experiment: TrainingJob, uri: str, run_id: str) -> None:
        """Write down what is about to run, from which sources."""
        for name, text in {
            "config.yaml": to_yaml(experiment),
            "mlflow.json": json.dumps({"uri": redacted(uri), "run_id": run_id}),
            "sources.json": json.dumps(sources()),
            "rewards.json": json.dumps(_contents(experiment)),
        }.items():
            atomic.write_text(self.directory / name, text)

    def _contents_then(self) -> dict[str, str]:
        return atomic.read_json(self.directory / "rewards.json") or {}

    def end(self, summary: dict[str, Any]) -> Path:
        """Write the summary."""
        path = self.directory / "summary.json"
        atomic.write_text(path, json.dumps(summary, indent=1))
        return path


def _contents(experiment: TrainingJob) -> dict[str, str]:
    """Return digests of the rewards' files that are here: evaluations and training so far were under these."""
    return {
        f"contents of rewards.services.{entry.name}.{field}": identity(entry)[field]
        for entry in experiment.rewards.services
        for field in ("checkpoint", "tokenizer")
        if (text := getattr(entry, field)) is not None and local_path(text) is not None
    }
