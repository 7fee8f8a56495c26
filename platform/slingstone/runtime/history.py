"""What an earlier run of the same name left in its directory, and whether this one may continue it."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slingstone.config import Experiment, flatten, load, to_yaml
from slingstone.runtime.tracking import git_commit, lock_hash

MAY_CHANGE = (
    "training.num_images",
    "training.checkpoint_every_images",
    "training.grid_every_images",
    "training.keep_checkpoints",
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


@dataclass(frozen=True)
class History:
    """The directory of a run, `<storage>/align/<name>`."""

    directory: Path

    @property
    def summary(self) -> dict[str, Any] | None:
        """The summary of a run that came to its end."""
        path = self.directory / "summary.json"
        return json.loads(path.read_text()) if path.is_file() else None

    def complete(self, run: Experiment) -> bool:
        """Tell whether nothing is left of a run: it came to its end, or its guard called it off."""
        done = self.summary
        return done is not None and ("guard" in done or done["images"] >= run.training.num_images)

    def mlflow_run(self, uri: str) -> str | None:
        """Return the id of the MLflow run to continue, if there was one in the same store."""
        path = self.directory / "mlflow.json"
        saved = json.loads(path.read_text()) if path.is_file() else {}
        return saved.get("run_id") if saved.get("uri") == uri else None

    def check(self, run: Experiment) -> None:
        """Refuse to continue a run of another configuration; forget one that has no checkpoint to continue from.

        Raises:
            ValueError: naming the keys that differ.
        """
        path = self.directory / "config.yaml"
        if not any(self.directory.glob("checkpoint_*/")):
            for name in ("config.yaml", "mlflow.json", "checkpoint_manager_snapshot.json"):
                (self.directory / name).unlink(missing_ok=True)
            for name in ("evaluation", "guard"):
                shutil.rmtree(self.directory / name, ignore_errors=True)
        if not path.is_file():
            return
        before, now = flatten(load(path)), flatten(run)
        differing = [
            f"{key} ({before.get(key, 'absent')} -> {now.get(key, 'absent')})"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key) and not key.startswith(MAY_CHANGE)
        ]
        if differing:
            raise ValueError(
                f"name = {run.name!r}: {self.directory} holds a run that differs in {', '.join(differing)};"
                " give this run another name, or delete the directory"
            )

    def begin(self, run: Experiment, uri: str, run_id: str) -> None:
        """Write down what is about to run, from which sources."""
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "config.yaml").write_text(to_yaml(run))
        (self.directory / "mlflow.json").write_text(json.dumps({"uri": uri, "run_id": run_id}))
        sources = {"git_commit": git_commit(), "lock_sha256": lock_hash()}
        (self.directory / "sources.json").write_text(json.dumps(sources))

    def end(self, summary: dict[str, Any]) -> Path:
        """Write the summary."""
        path = self.directory / "summary.json"
        path.write_text(json.dumps(summary, indent=1))
        return path
