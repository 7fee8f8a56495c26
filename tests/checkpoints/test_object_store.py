"""Checkpoints in an object store: behind pyarrow's local one, and behind a real S3 endpoint."""

from collections.abc import Iterator

import boto3
import pytest

from slingstone.checkpoints import store
from tests.checkpoints.test_saving import _flip, alone, assert_equal  # noqa: F401  (alone is a fixture)
from tests.infra import services
from tests.small_run import small


def test_an_object_store_serves_as_well_as_a_directory(tmp_path):
    uri = f"file://{tmp_path}/bucket/checkpoints"  # by pyarrow, as s3:// or gs:// would be
    run = small(uri, ["training.keep_checkpoints=2"])
    names = []
    for _ in range(3):
        run.steps(1)
        names.append(run.save())
    kept = store.ObjectStore(uri)
    assert kept.names() == names[1:]
    (tmp_path / "bucket" / "checkpoints" / "000000000099").mkdir()
    again = small(uri)
    facts = again.saved.restore()
    assert facts is not None
    assert facts.images == 24
    assert not (tmp_path / "bucket" / "checkpoints" / "000000000099").exists(), "unpublished"
    assert again.steps(2) == run.steps(2)
    assert_equal(again.everything(), run.everything())
    _flip(tmp_path / "bucket" / "checkpoints" / names[2])
    fallen_back = small(uri, ["recovery.on_damaged_checkpoint=previous"])
    facts = fallen_back.saved.restore()
    assert facts is not None
    assert facts.name == names[1]


@pytest.fixture(scope="module")
def bucket(tmp_path_factory) -> Iterator[str]:
    """The URI of an empty bucket behind a real S3 endpoint."""
    log = tmp_path_factory.mktemp("s3") / "s3.log"
    with services.s3(log) as endpoint, pytest.MonkeyPatch.context() as patch:
        for name, value in services.KEYS.items():
            patch.setenv(name, value)
        boto3.resource("s3", endpoint_url=endpoint).create_bucket(Bucket="runs")
        yield f"s3://runs/some/prefix?endpoint_override={endpoint}"


def test_checkpoints_in_s3_are_kept_continued_from_and_refused_as_in_a_directory(bucket):
    run = small(bucket, ["training.keep_checkpoints=2"])
    names = []
    for _ in range(3):
        run.steps(1)
        names.append(run.save())
    kept = store.open_store(bucket)
    assert isinstance(kept, store.ObjectStore)
    assert kept.names() == names[1:]
    with kept._files.open_output_stream(f"{kept._root}/000000000099/rank_0.pt") as begun:
        begun.write(b"half")
    again = small(bucket)
    facts = again.saved.restore()
    assert facts is not None
    assert facts.name == names[2]
    assert kept._begun() == names[1:], "what was never published is deleted"
    assert again.steps(2) == run.steps(2)
    assert_equal(again.everything(), run.everything())

    with kept._files.open_output_stream(f"{kept._root}/{names[2]}/ema_0.pt") as damaged:
        damaged.write(b"other")
    with pytest.raises(ValueError, match=rf"checkpoint {names[2]}: ema_0.pt has 5 bytes instead of"):
        small(bucket).saved.restore()
    facts = small(bucket, ["recovery.on_damaged_checkpoint=previous"]).saved.restore()
    assert facts is not None
    assert facts.name == names[1]
    assert kept.names() == names[1:2]


def test_a_bucket_that_cannot_be_written_costs_no_checkpoint_that_was_good(bucket):
    elsewhere = bucket.replace("some/prefix", "other/prefix")
    run = small(elsewhere, ["recovery.on_failed_save=go_on"])
    run.steps(1)
    name = run.save()
    run.steps(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run.saved.store, "_root", "no-such-bucket/prefix")
        run.save()
    assert "000000000016 cannot be saved" in run.said[-1]
    facts = small(elsewhere).saved.restore()
    assert facts is not None
    assert facts.name == name
