"""Fitting in one process: what learns, that it learns and resumes, and that its files are published ones."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPModel, CLIPTokenizer

from reward_services.gradient import score_and_gradient
from reward_services.models import load
from reward_services.models.ensemble import Ensemble
from reward_services.spec import RewardSpec
from slingstone.config import RewardFit
from slingstone.engines.engine import build_engine, trained
from slingstone.networks.adapters import trained_part
from slingstone.preferences.accuracy import accuracy
from slingstone.preferences.judge import Judge, build_judge, write
from slingstone.preferences.store import Loader, Stream, VoteStore, sampler_of
from slingstone.preferences.table import Picture, Preference
from slingstone.preferences.trainer import PreferenceTrainer
from tests.preferences.votes import picture

CPU = torch.device("cpu")


def red_is_better(count: int) -> list[Preference]:
    """Votes by one rule: the redder picture wins."""
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(256, (count, 2, 3), generator=generator).tolist()
    return [
        Preference(
            vote_id=str(number),
            prompt=f"prompt {number % 7}",
            first=Picture(data=picture(tuple(first))),
            second=Picture(data=picture(tuple(second), side=24)),
            choice="first" if first[0] > second[0] else "second",
            voter="ann",
        )
        for number, (first, second) in enumerate(levels)
    ]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> VoteStore:
    return VoteStore.write(tmp_path_factory.mktemp("votes") / "train.arrow", red_is_better(100))


def fitting(rewards_root: Path, model: str = "pickscore", **changed: Any) -> RewardFit:
    tree = {
        "name": "test",
        "reward": {
            "model": model,
            "checkpoint": str(rewards_root / model),
            "tokenizer": str(rewards_root / "tokenizer"),
        },
        "votes": {"train": "votes.parquet"},
        "training": {
            "num_votes": 320,
            "batch_size": 16,
            "optimizer": {"lr": 3e-3, "betas": [0.9, 0.999]},
            "validate_every_votes": 160,
        },
    }
    if model == "imagereward":
        del tree["reward"]["tokenizer"]
    return RewardFit.model_validate(tree | changed)


def trainer_of(settings: RewardFit, store: VoteStore) -> tuple[PreferenceTrainer, Judge]:
    torch.manual_seed(settings.seed)
    judge = build_judge(settings, CPU)
    training = settings.training
    engine = build_engine(trained_part(judge), training.optimizer, settings.runtime, training.max_grad_norm)
    heads = 1 if settings.ensemble is None else settings.ensemble.heads
    loader = Loader(store, judge.rule.fitted, settings.weighting == "prompt", heads)
    stream = Stream(loader, sampler_of(store, training.batch_size, 0, 1, settings.seed))
    return PreferenceTrainer(engine, judge, stream, settings.loss, training.accumulate), judge


def served(directory: Path, settings: RewardFit) -> Any:
    kind = "ensemble" if settings.ensemble else settings.reward.model
    spec = RewardSpec(name=kind, model=kind, checkpoint=str(directory), preprocess=settings.reward.preprocess)
    return load(spec)


@pytest.mark.parametrize(
    ("model", "loss", "learns"),
    [
        ("pickscore", "soft", {"kind": "all"}),
        ("hps", "davidson", {"kind": "last_blocks", "vision_blocks": 1, "text_blocks": 1}),
        ("imagereward", "logistic", {"kind": "lora", "rank": 4}),
    ],
)
def test_a_reward_learns_a_rule_and_is_served_from_its_published_layout(
    rewards_root, store, tmp_path, model, loss, learns
) -> None:
    settings = fitting(rewards_root, model, loss=loss, learns=learns)
    trainer, judge = trainer_of(settings, store)
    held_out = Loader(store, judge.rule.fitted)
    before = accuracy(trainer.judged(store, held_out, 50)).rate
    for _ in range(40):
        trainer.step()
    after = trainer.judged(store, held_out, 50)
    assert accuracy(after).rate > max(0.85, before), "the rule is plain: the redder one"

    judge.reward.preprocess = judge.rule
    write(judge, tmp_path / "written")
    reward = served(tmp_path / "written", settings)
    pictures = torch.rand(3, 3, 40, 56, generator=torch.Generator().manual_seed(0))
    judge.eval()
    with torch.no_grad():
        expected = judge.reward.score(pictures, ["a", "b", "c"])
    torch.testing.assert_close(reward.score(pictures, ["a", "b", "c"]), expected, rtol=0, atol=1e-5)


def test_a_fitted_pickscore_scores_the_same_by_transformers_alone(rewards_root, store, tmp_path) -> None:
    settings = fitting(rewards_root)
    trainer, judge = trainer_of(settings, store)
    trainer.step()
    judge.reward.preprocess = judge.rule
    write(judge, tmp_path)
    pictures = torch.rand(2, 3, 40, 40)
    model, tokenizer = CLIPModel.from_pretrained(tmp_path).eval(), CLIPTokenizer.from_pretrained(tmp_path)
    length = model.config.text_config.max_position_embeddings
    tokens = tokenizer(["a red circle", "b"], padding="max_length", max_length=length, return_tensors="pt")
    with torch.no_grad():
        out = model(input_ids=tokens.input_ids, pixel_values=judge.rule(pictures))
        plain = model.logit_scale.exp() * (out.image_embeds * out.text_embeds).sum(-1)
        ours = served(tmp_path, settings).score(pictures, ["a red circle", "b"])
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize("model", ["pickscore", "hps", "imagereward"])
def test_only_what_is_to_learn_learns(rewards_root, model) -> None:
    def learning(**learns: Any) -> set[str]:
        return set(trained(build_judge(fitting(rewards_root, model, learns=learns), CPU)))

    head = learning(kind="head")
    assert {name.split(".")[-2] for name in head if "mlp" not in name and "logit_scale" not in name} <= {
        "visual_projection",
        "text_projection",
    }
    blocks = learning(kind="last_blocks", vision_blocks=1)
    assert head < blocks < learning(kind="all")
    assert all("lora_" in name for name in learning(kind="lora"))
    with pytest.raises(ValueError, match=r"learns.text_blocks = 99: the tower has \d+; take at most so many"):
        learning(kind="last_blocks", text_blocks=99)


def test_parts_of_a_step_add_up_to_the_step(rewards_root, store) -> None:
    weights = []
    for parts in (1, 4):
        settings = fitting(rewards_root, weighting="prompt")
        training = settings.training.model_copy(update={"accumulate": parts})
        trainer, judge = trainer_of(settings.model_copy(update={"training": training}), store)
        trainer.step()
        weights.append(judge.reward.similarity.model.visual_projection.weight.detach().clone())
    # Adam's first step is lr in each weight, whatever the gradient: only rounding near zero gradients may differ.
    assert (weights[0] - weights[1]).abs().mean() < 1e-5


def test_a_fit_goes_on_bit_for_bit_from_its_state(rewards_root, store, tmp_path) -> None:
    settings = fitting(rewards_root, "imagereward", loss="logistic")  # its head has dropout
    whole, first = trainer_of(settings, store)[0], trainer_of(settings, store)[0]
    torch.manual_seed(3)
    expected = [whole.step()["loss/votes"] for _ in range(6)]
    torch.manual_seed(3)
    assert [first.step()["loss/votes"] for _ in range(3)] == expected[:3]
    saved, rng = first.engine.snapshot(), torch.get_rng_state()
    torch.save(saved["torch_engine.pt"], tmp_path / "torch_engine.pt")
    second, _ = trainer_of(settings, store)
    second.engine.load(tmp_path)
    second.stream.sampler.load_state_dict(first.stream.sampler.state_dict())
    torch.set_rng_state(rng)
    assert [second.step()["loss/votes"] for _ in range(3)] == expected[3:]


@pytest.mark.parametrize("model", ["pickscore", "imagereward"])
def test_an_ensemble_is_mean_less_spread_by_one_pass_and_of_one_mind_at_first(
    rewards_root, store, tmp_path, model
) -> None:
    settings = fitting(
        rewards_root, model, learns={"kind": "head"}, ensemble={"heads": 3, "spread_weight": 2.0}, loss="logistic"
    )
    trainer, judge = trainer_of(settings, store)
    pictures, prompts = torch.rand(4, 3, 40, 40), ["a", "b", "c", "d"]
    ensemble = judge.reward
    assert isinstance(ensemble, Ensemble)

    def scores(of: Ensemble) -> torch.Tensor:
        of.preprocess = judge.rule
        return of.eval().score(pictures, prompts)

    alone = served(rewards_root / model, fitting(rewards_root, model)) if model == "imagereward" else ensemble.base
    alone.preprocess = judge.rule
    torch.testing.assert_close(scores(ensemble), alone.eval().score(pictures, prompts), rtol=1e-5, atol=1e-5)
    assert score_and_gradient(ensemble, pictures, prompts)[1].isfinite().all(), "no NaN where all heads agree"

    ensemble.preprocess = judge.rule.after_fitting()
    for _ in range(10):
        trainer.step()
    write(judge, tmp_path)
    reward = served(tmp_path, settings)
    ensemble.preprocess = judge.rule
    logits = ensemble.eval().head_logits(pictures, prompts)
    expected = logits.mean(0) - 2.0 * logits.std(0, unbiased=False)
    assert logits.std(0).min() > 0, "heads that saw other votes differ"
    torch.testing.assert_close(reward.score(pictures, prompts), expected, rtol=0, atol=1e-4)
    assert json.loads((tmp_path / "ensemble.json").read_text())["heads"] == 3


def test_a_picture_that_cannot_be_decoded_stops_with_the_votes_name(rewards_root, tmp_path) -> None:
    votes = red_is_better(4)
    torn = votes[2].model_copy(update={"first": Picture(data=votes[2].first.data[:50])})
    store = VoteStore.write(tmp_path / "votes.arrow", [*votes[:2], torn, votes[3]])
    trainer, _ = trainer_of(fitting(rewards_root), store)
    with pytest.raises(ValueError, match="vote 2: picture 0 is a picture that is cut short or damaged"):
        trainer.step()


def test_weights_by_prompt_divide_by_its_votes_and_bootstrap_weights_average_to_one(rewards_root, store) -> None:
    judge = build_judge(fitting(rewards_root), CPU)
    by_prompt = Loader(store, judge.rule.fitted, by_prompt=True).load(range(7)).weights
    torch.testing.assert_close(by_prompt, torch.tensor([[1 / 15] * 2 + [1 / 14] * 5]))
    drawn = Loader(store, judge.rule.fitted, heads=50).load(range(40)).weights
    assert drawn.shape == (50, 40)
    assert drawn.mean().item() == pytest.approx(1, abs=4 / 2000**0.5)
    torch.testing.assert_close(drawn[:, 3:4], Loader(store, judge.rule.fitted, heads=50).load([3]).weights)
