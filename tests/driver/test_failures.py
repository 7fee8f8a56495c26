"""Which failures are worth another start, how many, and what a signal and an explosion lead to."""

import os
import signal
import threading

import pytest
import torch.distributed as dist
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from slingstone.checkpoints.saving import SaveFailed
from slingstone.driver.failures import RunFailed, cause, is_mistake, surviving
from slingstone.driver.stopping import told_to_stop
from slingstone.step.panel import RewardsLost
from slingstone.worker.rollback import Rollback
from tests.small_run import Small, small


def raised(*errors: Exception) -> WorkerGroupError:
    told = {rank: UserExceptionWithTraceback(error, f"Traceback ...\n{error}") for rank, error in enumerate(errors)}
    return WorkerGroupError("worker errors", told)


@pytest.mark.parametrize(
    "mistake", [ValueError("x"), KeyError("x"), FloatingPointError("x"), RewardsLost(), SaveFailed()]
)
def test_what_a_worker_names_is_a_mistake_even_if_its_peers_only_lost_it(mistake):
    assert is_mistake(raised(RuntimeError("Connection closed by peer"), mistake))
    assert is_mistake(WorkerGroupError("bare, as Ray may hand it over", {0: RuntimeError("closed"), 1: mistake}))


@pytest.mark.parametrize(
    "error",
    [
        raised(RuntimeError("Connection closed by peer"), OSError("broken pipe")),
        WorkerGroupError("died", {0: RuntimeError("the actor died")}),
        WorkerGroupError("died", {0: WorkerHealthCheckFailedError("a check failed", RuntimeError("the actor died"))}),
        ControllerError(TimeoutError("no resources")),
    ],
)
def test_what_a_death_causes_is_no_mistake(error):
    assert not is_mistake(error)


def test_the_cause_is_what_was_named_and_not_what_came_of_it():
    assert cause(raised(RuntimeError("Connection closed by peer"), ValueError("seed is wrong"))) == "seed is wrong"


def attempts(*outcomes: str | Exception):
    """Return an attempt that meets one outcome after another, and the checkpoint that each leaves."""
    reached, left = [None], list(outcomes)

    def attempt():
        outcome = left.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        if outcome == "done":
            return {"done": True}
        reached[0] = outcome
        raise RunFailed("died")

    return attempt, lambda: reached[0]


def test_failures_count_until_a_new_checkpoint_is_there():
    said: list[str] = []
    attempt, reached = attempts("1", "1", "2", "2", "2", "done")
    assert surviving(attempt, reached, 3, said.append) == {"done": True}
    assert [line[-8:] for line in said] == ["(1 of 3)", "(2 of 3)", "(1 of 3)", "(2 of 3)", "(3 of 3)"]
    attempt, reached = attempts("1", "1", "1", "1", "done")
    with pytest.raises(RunFailed, match="died"):
        surviving(attempt, reached, 3, said.append)


def test_a_mistake_is_not_tried_again_and_no_failure_is_where_none_may_be():
    for first, allowed in ((RunFailed("named", mistake=True), 3), (RunFailed("died"), 0)):
        attempt, reached = attempts(first, "done")
        with pytest.raises(RunFailed):
            surviving(attempt, reached, allowed, print)


def test_the_first_sigterm_asks_and_the_second_ends():
    said: list[str] = []
    before = signal.getsignal(signal.SIGTERM)
    with told_to_stop(said.append) as asked:
        assert not asked.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked.wait(5)
        assert said == ["told to stop: saving at the end of this step"]
        with pytest.raises(SystemExit) as ended:
            signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before


def test_another_thread_than_the_main_one_handles_no_signal():
    before, found = signal.getsignal(signal.SIGTERM), []

    def elsewhere() -> None:
        with told_to_stop(print) as asked:
            found.append((asked.is_set(), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [(False, before)]


@pytest.fixture
def alone(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def rolling_back(run: Small, told: list[tuple[str, int]]) -> Rollback:
    settings, seed = run.experiment.recovery.exploding, run.experiment.seed
    return Rollback(run.trainer, run.saved, settings, seed, lambda reason, images: told.append((reason, images)))


def test_an_explosion_goes_back_and_draws_other_noise_and_too_many_stop(tmp_path, alone):
    told: list[tuple[str, int]] = []
    limits = ["recovery.exploding={grad_norm: 1000000.0, rollbacks: 2}"]
    run = small(tmp_path / "checkpoints", limits)
    rollback = rolling_back(run, told)
    run.steps(2)
    run.save()
    saved = run.everything()
    first = rollback.step()
    assert first is not None
    for expected in (16, 16):
        strict = run.experiment.recovery.exploding.model_copy(update={"grad_norm": 1e-12})
        rollback.settings = strict
        assert rollback.step() is None
        assert told[-1] == (told[-1][0], expected)
        assert "above recovery.exploding.grad_norm" in told[-1][0]
        assert all((saved[name] == tensor).all() for name, tensor in run.everything().items())
    with pytest.raises(FloatingPointError, match="went back 2 times already"):
        rollback.step()
    run.saved.restore_from("000000000016")
    again = run.trainer.step()
    assert again["loss/assistant"] == first["loss/assistant"], "without an explosion the noise is the same"
    rollback = rolling_back(run, told)
    rollback.settings = strict
    assert rollback.step() is None
    rollback.settings = run.experiment.recovery.exploding
    after = rollback.step()
    assert after is not None
    assert after["loss/assistant"] != first["loss/assistant"]


def test_an_explosion_before_the_first_checkpoint_stops(tmp_path, alone):
    run = small(tmp_path / "checkpoints", ["recovery.exploding={grad_norm: 1.0e-12}"])
    with pytest.raises(FloatingPointError, match="there is no checkpoint yet"):
        rolling_back(run, []).step()
