"""MLflow goes away and comes back: every number arrives, once."""

from collections import Counter
from pathlib import Path
from typing import Any

import mlflow
import pytest
from PIL import Image

from slingstone import tracking
from slingstone.tracking import Run
from slingstone.tracking.journal import Journal


class Away:
    """A client whose server does not answer."""

    def __getattr__(self, name: str) -> Any:
        def fail(*args: object, **kwargs: object) -> None:
            raise ConnectionError("connection refused")

        return fail


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture
def opened(server, tmp_path) -> Run:
    """A run that exists on the server, as rank 0 sees it."""
    created = tracking.create_run(server, "faults", tmp_path.name, {}, {}, tmp_path)
    return Run(server, created.run_id, tmp_path / "metrics.jsonl", "spool")


def points(run: Run, name: str) -> list[tuple[int, float]]:
    found = mlflow.MlflowClient(run.uri).get_metric_history(run.run_id, name)
    return [(point.step, point.value) for point in found]


def test_numbers_of_an_outage_are_delivered_when_it_is_over(opened, tmp_path):
    opened.metrics({"loss": 1.0}, 8)
    assert opened.flush()
    client, opened._client = opened.client, Away()
    opened.metrics({"loss": 2.0}, 16)
    (tmp_path / "grid.png").write_bytes(b"x")
    opened.artifact(tmp_path / "grid.png", "pictures")
    assert not opened.flush(), "and training goes on"
    opened._client = client
    opened.metrics({"loss": 3.0}, 24)
    assert opened.end("FINISHED")
    assert points(opened, "loss") == [(8, 1.0), (16, 2.0), (24, 3.0)]
    run = mlflow.MlflowClient(opened.uri).get_run(opened.run_id)
    assert (Path(run.info.artifact_uri.removeprefix("file://")) / "pictures" / "grid.png").read_bytes() == b"x"


def test_pictures_and_tags_of_an_outage_arrive_too_and_training_goes_on_meanwhile(opened):
    client, opened._client = opened.client, Away()
    opened.picture(Image.new("RGB", (4, 4), "red"), "grid", 8)
    opened.tag("guard", "broken")
    assert not opened.flush()
    opened._client = client
    assert opened.end("FINISHED")
    assert mlflow.MlflowClient(opened.uri).get_run(opened.run_id).data.tags["guard"] == "broken"
    pictures = [artifact.path for artifact in client.list_artifacts(opened.run_id, "images")]
    assert any("grid" in path and path.endswith(".png") for path in pictures)


def test_numbers_outlive_the_process_that_could_not_deliver_them(opened, tmp_path):
    opened._client = Away()
    opened.metrics({"loss": 1.0}, 8)
    assert not opened.end("FINISHED")
    again = Run(opened.uri, opened.run_id, tmp_path / "metrics.jsonl", "spool")
    assert again.end("FINISHED")
    assert points(again, "loss") == [(8, 1.0)]


def test_an_outage_stops_a_run_that_was_told_to(opened, tmp_path):
    strict = Run(opened.uri, opened.run_id, tmp_path / "metrics.jsonl", "stop")
    strict._client = Away()
    strict.metrics({"loss": 1.0}, 8)
    with pytest.raises(ConnectionError, match="connection refused"):
        strict.flush()


def test_a_continued_run_counts_no_step_twice_and_loses_none(opened, tmp_path):
    for images in (8, 16, 24):
        opened.metrics({"loss": float(images)}, images)
    opened.flush()
    opened.metrics({"loss": 32.0}, 32)  # taken down, and killed before it was sent
    again = Run(opened.uri, opened.run_id, tmp_path / "metrics.jsonl", "spool")
    for images in (24, 32, 40):  # from the checkpoint at 16 images on
        again.metrics({"loss": float(images)}, images)
        again.metrics({"training/utility": 1.0}, images)  # for the first time
    again.flush()
    assert points(again, "loss") == [(images, float(images)) for images in (8, 16, 24, 32, 40)]
    assert [step for step, _ in points(again, "training/utility")] == [24, 32, 40]


def test_a_kill_between_sending_and_noting_it_counts_nothing_twice(opened, tmp_path):
    opened.metrics({"loss": 1.0}, 8)
    opened.flush()
    (tmp_path / "metrics.jsonl.sent").unlink()  # as if it had died before it noted the delivery
    again = Run(opened.uri, opened.run_id, tmp_path / "metrics.jsonl", "spool")
    again.flush()
    assert points(again, "loss") == [(8, 1.0)]


def test_after_a_return_the_new_numbers_are_taken_down_beside_the_old(opened):
    for images in (8, 16):
        opened.metrics({"loss": 1.0}, images)
    opened.journal.go_back(8)
    opened.metrics({"loss": 2.0}, 8)
    opened.metrics({"loss": 2.0}, 16)
    opened.flush()
    assert Counter(points(opened, "loss")) == {(8, 1.0): 1, (16, 1.0): 1, (16, 2.0): 1}


def test_half_a_line_of_a_crashed_machine_is_forgotten(tmp_path):
    path = tmp_path / "metrics.jsonl"
    Journal(path).record({"loss": 1.0}, 8, 5)
    path.write_bytes(path.read_bytes() + b'{"images": 16, "ms"')
    journal = Journal(path)
    journal.record({"loss": 2.0}, 16, 6)
    assert [(point.value, point.images) for point in journal.undelivered()[0]] == [(1.0, 8), (2.0, 16)]
