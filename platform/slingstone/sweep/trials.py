"""What a sweep will run, checked before anything is held. Imports neither torch nor ray."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from slingstone.config import Experiment, Sweep, load, paths, to_yaml
from slingstone.config.experiment import ALWAYS_MEASURED, measured, trained_on
from slingstone.config.sweep import Uniform
from slingstone.driver import preflight


@dataclass(frozen=True)
class Plan:
    """A sweep whose run was resolved.

    Attributes:
        sweep: the configuration, its storage absolute.
        run: the run that is varied, the sweep's overrides applied and its paths absolute.
        written: the same with the paths as they were given, since a job's working directory is another at each
            submission; what is recommended at the end is this run with the values of the best trial.
    """

    sweep: Sweep
    run: Experiment
    written: Experiment

    @property
    def directory(self) -> Path:
        """Where the sweep writes."""
        return Path(self.sweep.storage) / "sweep" / self.sweep.name

    @property
    def run_file(self) -> Path:
        """The run as it was given; `begin` writes it."""
        return self.directory / "run.yaml"

    @property
    def trials_file(self) -> Path:
        """The run as the trials load it, its paths those of this submission; `begin` writes it."""
        return self.directory / "resolved.yaml"

    @property
    def num_trials(self) -> int:
        """How many trials make up the sweep."""
        if self.sweep.search.kind != "grid":
            return self.sweep.search.trials
        return len(list(_grid(self.sweep)))

    def trial(self, name: str, values: Mapping[str, Any]) -> Experiment:
        """Return the run of one trial; every process of the cluster reads it from the same file."""
        own = [f"name={name}", f"storage={self.sweep.storage}", "rewards.lifecycle=external"]
        return load(self.trials_file, [*assignments(values), *self.sweep.trial_overrides, *own])

    def begin(self) -> None:
        """Write down what is about to run, or continue what was begun.

        Raises:
            ValueError: a sweep of this name was begun with another configuration.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        texts = {self.directory / "sweep.yaml": to_yaml(self.sweep), self.run_file: to_yaml(self.written)}
        for path, text in texts.items():
            if path.is_file() and path.read_text() != text:
                raise ValueError(
                    f"name = {self.sweep.name!r}: {path} is of another sweep; give this one another name, "
                    "or delete the directory"
                )
        for path, text in (texts | {self.trials_file: to_yaml(self.run)}).items():
            path.write_text(text)


def prepare(sweep: Sweep) -> Plan:
    """Resolve and check the run with every value that it may get.

    Raises:
        ValueError: naming what is wrong with the run, or with a value of the sweep.
    """
    source = paths.located(sweep.run)
    storage = str(Path(sweep.storage).resolve())
    written = load(source, [*sweep.overrides, f"storage={storage}"])
    experiment = preflight.prepare(written)
    for number, values in enumerate(_corners(sweep)):
        varied = load(source, [*sweep.overrides, *assignments(values), *sweep.trial_overrides])
        if number == 0:
            _check_metrics(sweep, varied)
        _check_signal(sweep, varied)
        _check_grace(sweep, varied)
    return Plan(sweep.model_copy(update={"storage": storage}), experiment, written)


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


def _grid(sweep: Sweep) -> Iterator[tuple[Any, ...]]:
    return product(*(values.values for values in sweep.space.values() if not isinstance(values, Uniform)))


def _check_metrics(sweep: Sweep, experiment: Experiment) -> None:
    named = {f"objectives.{i}.metric": entry.metric for i, entry in enumerate(sweep.objectives)}
    for field, metric in (named | {"signal.metric": sweep.signal.metric}).items():
        if not measured(experiment, metric):
            known = [*(f"rewards/{entry.name}" for entry in experiment.rewards.services), *ALWAYS_MEASURED]
            oracle = "" if experiment.evaluation.oracle else "; evaluation.oracle is null, so there is no ground truth"
            raise ValueError(f"{field} = {metric!r}: no evaluation has it; it has {', '.join(known)}{oracle}")


def _check_signal(sweep: Sweep, experiment: Experiment) -> None:
    """Refuse a signal that the trials are trained on: it would reward the hacking of it."""
    if trained_on(experiment, sweep.signal.metric):
        name = sweep.signal.metric.removeprefix("rewards/")
        raise ValueError(
            f"signal.metric = {sweep.signal.metric!r}: the trials are trained on it; hold it out with "
            f"rewards.services.{name}.weight=0 in overrides, or name another number"
        )


def _check_grace(sweep: Sweep, experiment: Experiment) -> None:
    """Refuse to stop trials before their generators have taken a step: all would show the initial one."""
    early, training = sweep.early_stopping, experiment.training
    if early is not None and early.grace_images <= training.warmup_images:
        raise ValueError(
            f"early_stopping.grace_images = {early.grace_images}: the trials' generators wait until warmup_images = "
            f"{training.warmup_images}, so that all are the initial one; take more, such as "
            f"{training.warmup_images + training.grid_every_images}"
        )
