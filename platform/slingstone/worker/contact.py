"""Rank 0's contact with the driver and MLflow; other ranks keep quiet."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray

from slingstone.tracking import Run
from slingstone.tracking.journal import journal_of
from slingstone.worker.assignment import Assignment


class Contact:
    """Lines for the user, numbers for MLflow, and the driver's wish to stop; abstract: each job tells its own."""

    def __init__(self, assignment: Assignment, rank: int) -> None:
        self._board = assignment.board
        self._quiet = rank > 0
        if not self._quiet:
            self._board.set_reservation.remote(ray.util.get_current_placement_group())
        self._directory = Path(assignment.directory)
        tracking, run_id = assignment.experiment.tracking, assignment.mlflow_run_id
        self._run = Run(assignment.mlflow_uri, run_id, journal_of(self._directory, run_id), tracking.on_failure)
        if not self._quiet and tracking.system_metrics:
            self._run.watch_system()
        self._answer: Any = None

    def say(self, line: str) -> None:
        """Show a line to the user."""
        if not self._quiet:
            self._board.say.remote(line)

    def stopping(self) -> bool:
        """Return whether the driver was told to stop, as it answers by the next call: no step waits for that."""
        if self._quiet:
            return False
        if self._answer is None:
            self._answer = self._board.stopping.remote()
        if not ray.wait([self._answer], timeout=0)[0]:
            return False
        stop: Any = ray.get(self._answer)
        self._answer = self._board.stopping.remote()
        return stop

    def saved(self, waited_s: float, images: int) -> None:
        """Take note of a checkpoint for which training stood still so long."""
        if not self._quiet:
            self._run.metrics({"seconds/checkpoint_wait": waited_s}, images)

    def numbers(self, values: Mapping[str, float], position: int) -> None:
        """Take note of numbers at a position."""
        if not self._quiet:
            self._run.metrics(values, position)
