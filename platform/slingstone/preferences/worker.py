"""What each Ray Train worker runs to fit a reward: restore, train, validate, save, write."""

import copy
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch

from slingstone import atomic
from slingstone.checkpoints.manifest import Facts
from slingstone.checkpoints.run_directory import checkpoints
from slingstone.checkpoints.saving import Checkpoints
from slingstone.checkpoints.state import State
from slingstone.checkpoints.store import open_store
from slingstone.config import RewardFit, flatten
from slingstone.engines.engine import build_engine, trained
from slingstone.engines.masters import gather
from slingstone.networks.adapters import cast_frozen, trained_part
from slingstone.networks.protocol import DTYPES
from slingstone.preferences.accuracy import Judged, accuracy, calibrated
from slingstone.preferences.judge import Judge, build_judge, write
from slingstone.preferences.store import Loader, Stream, VoteStore, sampler_of
from slingstone.preferences.trainer import PreferenceTrainer
from slingstone.worker.assignment import Assignment
from slingstone.worker.contact import Contact
from slingstone.worker.progress import duration
from slingstone.worker.ranks import any_rank, crossed, mean_over_ranks

SAY_EVERY_S = 4.0


def fit(config: dict[str, Any]) -> dict[str, Any]:
    """Run one rank of a fitting; return what is known of the reward that came out, or nothing if told to stop."""
    assignment: Assignment[RewardFit] = config["assignment"]
    fitting, context = assignment.experiment, ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(fitting.runtime.threads_per_worker)
    told, directory = Contact(assignment, rank), Path(assignment.directory)
    told.say("loading the reward")
    torch.manual_seed(fitting.seed)
    judge = build_judge(fitting, ray.train.torch.get_device())
    unrounded = copy.deepcopy(judge)  # what is written at the end
    cast_frozen(judge, DTYPES[fitting.runtime.precision])
    training = fitting.training
    engine = build_engine(trained_part(judge), training.optimizer, fitting.runtime, training.max_grad_norm)
    train, test = (VoteStore(directory / f"{side}.arrow") for side in ("train", "test"))
    heads = 1 if fitting.ensemble is None else fitting.ensemble.heads
    loader = Loader(train, judge.rule.fitted, fitting.weighting == "prompt", heads, fitting.seed)
    held_out = Loader(test, judge.rule.fitted, heads=1)
    sampler = sampler_of(train, training.batch_size, rank, world, fitting.seed)
    trainer = PreferenceTrainer(engine, judge, Stream(loader, sampler), fitting.loss, training.accumulate)
    validate = partial(trainer.judged, test, held_out, max(1, training.batch_size // world // training.accumulate))
    flat, state = flatten(fitting), State(trainer, {"reward": engine}, sampler, rank)
    store = open_store(checkpoints(fitting))
    saved = Checkpoints(state, store, fitting.recovery, flat, training.keep_checkpoints, told.say)
    facts = partial(Facts, num_workers=world, mlflow_run_id=assignment.mlflow_run_id, config=flat)
    torch.manual_seed(fitting.seed * 65537 + rank)
    if (resumed := saved.restore()) is not None:
        told.say(f"resumed at {resumed.images} votes")
    else:
        saved.save(facts(0, score=_note(trainer, validate(), told)))  # no fit may end worse than it began
    spent, voted, last = 0.0, trainer.votes, 0.0
    while trainer.votes < training.num_votes and not _over(trainer, training.patience):
        before = trainer.votes
        metrics = mean_over_ranks(trainer.step())
        votes, score = trainer.votes, None
        told.numbers(metrics, votes)
        saved.advance()
        spent += metrics["seconds/step"]
        if spent - last > SAY_EVERY_S:
            last, speed = spent, (votes - voted) / spent
            left = duration(max(0, training.num_votes - votes) / speed)
            told.say(
                f"{votes}/{training.num_votes} votes  {speed:.1f} votes/s  loss {metrics['loss/votes']:.4f}  ETA {left}"
            )
        stopping, ended = any_rank(told.stopping()), votes >= training.num_votes
        if crossed(training.validate_every_votes, before, votes) or ended:
            score = _note(trainer, validate(), told)
            ray.train.report({"votes": votes, "accuracy": score})
        if score is not None or stopping:
            saved.save(facts(votes, score=score))
            told.saved(saved.waited_s, votes)
        if stopping and not ended:
            saved.finish()
            return {}
    saved.finish()
    if (best := saved.best()) is not None and best.images != trainer.votes:
        saved.restore_from(best.name)
    judged = validate()
    _take(judge, unrounded, engine)
    if rank == 0:
        _write(unrounded, fitting, judged, trainer, directory / "reward")
    found = accuracy(judged)
    return {"accuracy": found._asdict(), "votes": trainer.votes, "calibration": calibrated(judged)._asdict()}


def _note(trainer: PreferenceTrainer, judged: Judged, told: Contact) -> float:
    """Take down a validation; return its accuracy, less a millionth of its cross-entropy: of equals, the surer wins."""
    found, fit = accuracy(judged), calibrated(judged)
    logits = judged.gap * np.sign(judged.labels[0] - judged.labels[1]) / fit.temperature
    entropy = float(np.logaddexp(0, -logits[judged.decided]).mean())
    trainer.history.append((trainer.votes, found.rate - 1e-6 * entropy))
    told.numbers({"accuracy/held_out": found.rate, "loss/held_out": entropy}, trainer.votes)
    told.say(f"at {trainer.votes} votes: {found.rate:.3f} of held-out votes ({found.low:.3f} to {found.high:.3f})")
    return trainer.history[-1][1]


def _over(trainer: PreferenceTrainer, patience: int | None) -> bool:
    """Tell whether the last validations were all no better than the best before them."""
    scores = [score for _, score in trainer.history]
    return patience is not None and len(scores) > patience and max(scores[-patience:]) <= max(scores[:-patience])


def _take(judge: Judge, unrounded: Judge, engine: Any) -> None:
    """Put the engine's fp32 weights into a judge that never was rounded; a collective."""
    names = trained(engine.module)
    gather(engine.masters(), {name: weight.data for name, weight in unrounded.named_parameters() if name in names})


def _write(judge: Judge, fitting: RewardFit, judged: Judged, trainer: PreferenceTrainer, target: Path) -> None:
    """Write the reward in its published layout, and beside it what is known of it."""
    judge.reward.preprocess = judge.rule
    write(judge, target)
    fit = calibrated(judged)
    known = {"model": "ensemble" if fitting.ensemble else fitting.reward.model, "votes": trainer.votes}
    known |= {"accuracy": accuracy(judged)._asdict(), "calibration": fit._asdict(), "history": trainer.history}
    known |= {"log_ties": judge.log_ties.item() if fitting.loss == "davidson" else None}
    atomic.write_text(target / "reward.json", json.dumps(known, indent=1))
