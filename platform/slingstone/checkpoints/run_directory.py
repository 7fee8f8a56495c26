"""What an earlier run of the same name left in its directory, and whether this one may continue it."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reward_services.contents import local_path
from reward_services.identity import identity
from slingstone.checkpoints.store import open_store
from slingstone.config import Experiment, flatten, load, to_yaml
from slingstone.config.paths import of_sources
from slingstone.tracking import redacted
from slingstone.tracking.provenance import sources

MAY_CHANGE = (
    "training.num_images",
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


def checkpoints(experiment: Experiment) -> str:
    """Return where a run's checkpoints lie."""
    return f"{(experiment.recovery.checkpoints or experiment.storage).rstrip('/')}/align/{experiment.name}/checkpoints"


def newest(experiment: Experiment) -> str | None:
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
    """The directory of a run, `<storage>/align/<name>`."""

    directory: Path

    @property
    def summary(self) -> dict[str, Any] | None:
        """The summary of a run that came to its end."""
        path = self.directory / "summary.json"
        return json.loads(path.read_text()) if path.is_file() else None

    def complete(self, experiment: Experiment) -> bool:
        """Tell whether nothing is left of a run: it came to its end, or its guard called it off."""
        done = self.summary
        return done is not None and ("guard" in done or done["images"] >= experiment.training.num_images)

    def mlflow_run(self, uri: str) -> str | None:
        """Return the id of the MLflow run to continue, if there was one in the same store."""
        path = self.directory / "mlflow.json"
        saved = json.loads(path.read_text()) if path.is_file() else {}
        return saved.get("run_id") if saved.get("uri") == redacted(uri) else None

    def check(self, experiment: Experiment) -> None:
        """Refuse to continue a run of another configuration; forget one that has no checkpoint to continue from.

        Raises:
            ValueError: naming the keys that differ.
        """
        path = self.directory / "config.yaml"
        before = load(path) if path.is_file() else None
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

    def begin(self, experiment: Experiment, uri: str, run_id: str) -> None:
        """Write down what is about to run, from which sources."""
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "config.yaml").write_text(to_yaml(experiment))
        (self.directory / "mlflow.json").write_text(json.dumps({"uri": redacted(uri), "run_id": run_id}))
        (self.directory / "sources.json").write_text(json.dumps(sources()))
        (self.directory / "rewards.json").write_text(json.dumps(_contents(experiment)))

    def _contents_then(self) -> dict[str, str]:
        path = self.directory / "rewards.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    def end(self, summary: dict[str, Any]) -> Path:
        """Write the summary."""
        path = self.directory / "summary.json"
        path.write_text(json.dumps(summary, indent=1))
        return path


def _contents(experiment: Experiment) -> dict[str, str]:
    """Return digests of the rewards' files that are here: evaluations and training so far were under these."""
    return {
        f"contents of rewards.services.{entry.name}.{field}": identity(entry)[field]
        for entry in experiment.rewards.services
        for field in ("checkpoint", "tokenizer")
        if (text := getattr(entry, field)) is not None and local_path(text) is not None
    }
