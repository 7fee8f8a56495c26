"""A job, its cluster and its MLflow server under faults from outside: it ends as undisturbed."""

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple, cast

import pytest
from ray.job_submission import JobStatus, JobSubmissionClient

from slingstone.config import Experiment, load
from slingstone.driver.preflight import prepare
from workbench.soak.cluster import Cluster, running
from workbench.soak.faults import FAULTS, KINDS, Fault, plan
from workbench.soak.job import Job
from workbench.soak.processes import Sample, level
from workbench.soak.run import play, shrink, soak, variant
from workbench.soak.verdicts import same_end

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "soak" / "scenes.yaml"
SHORT = ("training.num_images=160", "training.checkpoint_every_images=20", "training.grid_every_images=80")


class Place(NamedTuple):
    """A cluster on which a run came to its end undisturbed."""

    cluster: Cluster
    run: Experiment
    undisturbed: Experiment


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[Place]:
    storage = tmp_path_factory.mktemp("soak")
    run = prepare(load(CONFIG, [*SHORT, f"storage={storage}"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_AUTH_MODE", raising=False)
        with running(storage) as made:
            undisturbed = variant(run, "undisturbed", made)
            play(Job(undisturbed, made, Random(0)), [], print)
            yield Place(made, run, undisturbed)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("kind", ["replica", "outage", "slow", "mlflow", "full_disk", "damage", "preemption", "head"])
def test_a_job_that_suffers_this_ends_as_undisturbed(place, kind):
    suffering = variant(place.run, kind, place.cluster)
    _, ((_, did),) = play(Job(suffering, place.cluster, Random(1)), [Fault(30, kind)], print)
    assert "killed 0" not in did
    for verdict in same_end(place.undisturbed, suffering, place.cluster.mlflow.uri):
        assert verdict.holds, verdict


@pytest.mark.slow
@pytest.mark.ray
def test_a_short_soak_holds_all_that_the_long_one_shows(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    run = prepare(load(CONFIG, [*SHORT, f"storage={tmp_path}"]))
    outcome = soak(run, plan(0, 160, 3, ("worker", "saving", "replica")), print)
    assert len(outcome.done) == 3
    for verdict in outcome.verdicts:  # but for memory, which takes longer to tell
        assert verdict.holds or verdict.claim.startswith("memory"), verdict


def test_a_job_whose_fault_does_not_show_is_stopped(monkeypatch, tmp_path):
    jobs, cluster = _Endless(), Cluster(tmp_path)
    cluster.jobs = cast("JobSubmissionClient", jobs)
    job = Job(load(CONFIG), cluster, Random(0))

    def no_show(_: Job) -> str:
        raise TimeoutError("not within 1 s: a replica")

    monkeypatch.setitem(cast("dict[str, object]", FAULTS), "replica", no_show)
    monkeypatch.setattr(job, "position", lambda: 30)
    with pytest.raises(RuntimeError, match=r"replica: not within 1 s.*what it said"):
        play(job, [Fault(30, "replica")], print)
    assert jobs.stopped == ["job"]


class _Endless:
    """A head's jobs, of which each runs until it is stopped."""

    def __init__(self) -> None:
        self.stopped: list[str] = []

    def submit_job(self, entrypoint: str) -> str:
        return "job"

    def get_job_status(self, job: str) -> JobStatus:
        return JobStatus.STOPPED if job in self.stopped else JobStatus.RUNNING

    def get_job_logs(self, job: str) -> str:
        return "what it said"

    def stop_job(self, job: str) -> None:
        self.stopped.append(job)


def test_the_shipped_soak_is_two_thousand_steps_on_one_worker_and_knows_all_its_faults():
    run = load(CONFIG)
    assert run.training.num_images / run.training.batch_size == 2000
    assert run.runtime.num_workers == 1, "only then the end is the same bit for bit"
    assert set(KINDS) <= set(FAULTS)


def test_a_pipeline_without_a_unet_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="a soak needs a local pipeline with a UNet"):
        shrink(tmp_path / "nothing", tmp_path / "copy", 0)


def test_a_plan_is_the_same_for_its_seed_and_spreads_all_kinds_over_the_run():
    faults = plan(3, 4000, 20)
    assert faults == plan(3, 4000, 20)
    assert faults != plan(4, 4000, 20)
    assert [fault.images // 200 for fault in faults] == list(range(20)), "one every hundred steps of two images"
    counts = [sum(fault.kind == kind for fault in faults) for kind in KINDS]
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize(("growth", "flat"), [(1.0, True), (1.04, True), (1.2, False)])
def test_memory_that_grows_after_the_warm_up_is_told_from_memory_that_does_not(growth, flat):
    warming = [Sample(at, 50 + at, 10) for at in range(0, 100, 3)]
    after = [Sample(at, int(1000 * growth ** ((at - 100) / 900)), 10) for at in range(100, 1000, 3)]
    found = level("trainer", warming + after)
    assert found is not None
    assert found.flat == flat
    assert level("trainer", after[:10]) is None, "too young to tell"
