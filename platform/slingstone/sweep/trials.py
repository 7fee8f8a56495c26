"""What a sweep will run, checked before anything is held. Imports neither torch nor ray."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import yaml

from slingstone import atomic
from slingstone.config import Experiment, Sweep, load, paths, to_yaml
from slingstone.config.experiment import measured, metrics, trained_on
from slingstone.config.sweep import Uniform
from slingstone.driver import preflight


@dataclass(frozen=True)
class PreparedSweep:
    """A sweep whose experiment was resolved and checked.

    Attributes:
        sweep: the configuration, its storage absolute.
        experiment: what is varied, the sweep's overrides applied and its paths absolute.
        as_given: the same with the paths as they were given, since a job's working directory is another at each
            submission.
        base: where the relative paths of the trials' values begin.
    """

    sweep: Sweep
    experiment: Experiment
    as_given: Experiment
    base: Path

    @property
    def directory(self) -> Path:
        """Where the sweep writes."""
        return Path(self.sweep.storage) / "sweep" / self.sweep.name

    @property
    def tune_directory(self) -> Path:
        """Where Tune keeps the state of its trials."""
        return self.directory / "tune"

    @property
    def given_file(self) -> Path:
        """The experiment as it was given; `begin` writes it."""
        return self.directory / "run.yaml"

    @property
    def resolved_file(self) -> Path:
        """The experiment as the trials load it, its paths those of this submission; `begin` writes it."""
        return self.directory / "resolved.yaml"

    @property
    def num_trials(self) -> int:
        """How many trials make up the sweep."""
        if self.sweep.search.kind != "grid":
            return self.sweep.search.trials
        return prod(len(values.values) for values in self.sweep.space.values() if not isinstance(values, Uniform))

    def trial(self, name: str, values: Mapping[str, Any]) -> Experiment:
        """Return the experiment of one trial; every process of the cluster reads it from the same file."""
        own = [f"name={name}", f"storage={self.sweep.storage}", "rewards.lifecycle=external"]
        trial = load(self.resolved_file, [*assignments(values), *self.sweep.trial_overrides, *own])
        return preflight.prepare(trial, self.base)

    def recommended(self, values: Mapping[str, Any]) -> Experiment:
        """Return the experiment with the values of a trial, to be run from any directory."""
        overrides = [*assignments(values), f"name={self.sweep.name}-recommended"]
        return paths.Departure(self.base).of(load(self.given_file, overrides))

    def trial_name(self, trial: str) -> str:
        """Return the name of a trial's run by Tune's id, the same when the sweep goes on after an interruption."""
        return f"{self.sweep.name}-{trial}"

    def reason_file(self, trial: str) -> Path:
        """Return where a trial that failed says why, by Tune's id."""
        return self.directory / "failed" / f"{trial}.txt"

    def begin(self) -> None:
        """Write down what is about to run, or continue what was begun.

        Raises:
            ValueError: a sweep of this name was begun with another configuration.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        texts = {self.directory / "sweep.yaml": to_yaml(self.sweep), self.given_file: to_yaml(self.as_given)}
        for path, text in texts.items():
            if path.is_file() and path.read_text() != text:
                raise ValueError(
                    f"name = {self.sweep.name!r}: {path} is of another sweep; give this one another name, "
                    "or delete the directory"
                )
        for path, text in (texts | {self.resolved_file: to_yaml(self.experiment)}).items():
            atomic.write_text(path, text)


def prepare(sweep: Sweep) -> PreparedSweep:
    """Resolve and check the experiment with every value that it may get.

    Raises:
        ValueError: naming what is wrong with the experiment, or with a value of the sweep.
    """
    found = paths.resolved(sweep)
    source, sweep = found.run, sweep.model_copy(update={"storage": found.storage})
    as_given = load(source, [*sweep.overrides, f"storage={sweep.storage}"])
    experiment = preflight.prepare(as_given)
    for values in _corners(sweep):
        own = [*assignments(values), *sweep.trial_overrides, f"storage={sweep.storage}"]
        trial = load(source, [*sweep.overrides, *own])
        prepared = preflight.prepare(trial)
        _share_rewards(sweep, experiment, prepared)
        _check(sweep, prepared)
    return PreparedSweep(sweep, experiment, as_given, Path.cwd())


def assignments(values: Mapping[str, Any]) -> list[str]:
    """Return a trial's values as overrides."""
    return [f"{path}={value}" for path, value in values.items()]


def as_text(value: Any) -> str:
    """Return a choice as it would stand in YAML, which is how a search tells choices apart."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()


def _corners(sweep: Sweep) -> Iterator[dict[str, Any]]:
    """Yield a sequence of values in which every end of a range and every choice occurs."""
    ends = {
        path: [values.low, values.high] if isinstance(values, Uniform) else [as_text(value) for value in values.values]
        for path, values in sweep.space.items()
    }
    for number in range(max(map(len, ends.values()))):
        yield {path: values[number % len(values)] for path, values in ends.items()}


def _share_rewards(sweep: Sweep, experiment: Experiment, trial: Experiment) -> None:
    """Refuse to vary what all trials share: each would be told another value, and get the same scores."""
    for key in experiment.rewards.differing(trial.rewards):
        path = next((path for path in sweep.space if f"{key}.".startswith(f"{path}.")), None)
        field = "trial_overrides" if path is None else f"space.{path}"
        raise ValueError(
            f"{field}: all trials share one service of each reward, so that {key} cannot differ; run a sweep for each "
            "value, or give every trial its own rewards with rewards.backend=in_process in overrides"
        )


def _check(sweep: Sweep, trial: Experiment) -> None:
    """Refuse metrics that no trial has, and what makes trials say nothing of each other."""
    signal, early, warmup = sweep.signal.metric, sweep.early_stopping, trial.training.warmup_images
    named = {f"objectives.{i}.metric": entry.metric for i, entry in enumerate(sweep.objectives)}
    for field, metric in (named | {"signal.metric": signal}).items():
        if not measured(trial, metric):
            oracle = "" if trial.evaluation.oracle else "; evaluation.oracle is null, so there is no ground truth"
            raise ValueError(f"{field} = {metric!r}: no evaluation has it; it has {', '.join(metrics(trial))}{oracle}")
    if trained_on(trial, signal):  # it would reward the hacking of it
        raise ValueError(
            f"signal.metric = {signal!r}: the trials are trained on it; hold it out with "
            f"rewards.services.{signal.removeprefix('rewards/')}.weight=0 in overrides, or name another number"
        )
    if early is not None and early.grace_images <= warmup:
        raise ValueError(
            f"early_stopping.grace_images = {early.grace_images}: the trials' generators wait until warmup_images = "
            f"{warmup}, so that all are the initial one; take more, such as "
            f"{warmup + trial.training.grid_every_images}"
        )
