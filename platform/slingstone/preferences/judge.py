"""A reward as a module that an engine trains: what of it learns, what it says of pairs, and how it is written again."""

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reward_services.models import load
from reward_services.models.ensemble import Ensemble
from reward_services.models.hps import HPS
from reward_services.models.imagereward import ImageReward
from reward_services.models.pickscore import PickScore
from reward_services.models.writers import write_ensemble, write_hps, write_imagereward, write_pickscore
from reward_services.spec import RewardSpec
from slingstone.config import RewardFit
from slingstone.config.fitting import Learns
from slingstone.networks.adapters import Adapter, add_adapter, merged

Fittable = PickScore | HPS | ImageReward
MAX_LOG_SCALE = 4.6052  # log 100: CLIP's own bound
_CLIP_LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
_BLIP_LAYERS = ("qkv", "projection", "query", "key", "value", "dense", "fc1", "fc2")


class Judge(nn.Module):
    """Scores pairs by a reward in which some weights learn.

    Args:
        reward: in training; an ensemble where several heads learn.
    """

    def __init__(self, reward: Fittable | Ensemble) -> None:
        super().__init__()
        self.reward = reward
        self.rule = reward.preprocess
        self.reward.preprocess = reward.preprocess.after_fitting()  # the loader fits each picture, whatever its size
        self.log_ties = nn.Parameter(torch.zeros(()))

    def forward(
        self, pictures: Float[Tensor, "picture 3 size size"], prompts: Sequence[str]
    ) -> Float[Tensor, "heads picture_and_one"]:
        """Return each head's logits of fitted pictures, and in one more column the log odds of a tie."""
        doubled = [*prompts, *prompts]
        if isinstance(self.reward, Ensemble):
            logits = self.reward.head_logits(pictures, doubled)
        else:
            logits = logits_of(self.reward, pictures, doubled)[None]
        return torch.cat([logits, self.log_ties.to(logits.dtype).expand(len(logits), 1)], dim=1)


def logits_of(reward: Fittable, pictures: Tensor, prompts: Sequence[str]) -> Float[Tensor, " picture"]:
    """Return what the losses compare: the score, and of a CLIP the cosine times its bounded temperature."""
    if isinstance(reward, ImageReward):
        return reward.score(pictures, prompts).float()
    scale = reward.similarity.model.logit_scale.clamp(max=MAX_LOG_SCALE).exp()
    return scale.float() * reward.similarity(reward.preprocess(pictures), prompts)


def build_judge(fitting: RewardFit, device: torch.device) -> Judge:
    """Load the reward and mark what learns.

    Raises:
        ValueError: the checkpoint cannot be read, or has not the blocks that are to learn.
    """
    start = fitting.reward
    spec = RewardSpec(
        name=start.model,
        model=start.model,
        checkpoint=start.checkpoint,
        tokenizer=start.tokenizer,
        preprocess=start.preprocess,
        device=str(device),
    )
    reward = load(spec)
    assert isinstance(reward, Fittable)
    towers = _towers(reward)
    if fitting.runtime.gradient_checkpointing:
        for tower in towers:
            tower.gradient_checkpointing_enable()  # pyright: ignore[reportCallIssue]
    if fitting.ensemble is not None:
        reward = Ensemble.around(reward, fitting.ensemble.heads, fitting.ensemble.spread_weight).to(device)
    judge = Judge(reward).to(device)
    _let_learn(judge, fitting)
    return judge


def write(judge: Judge, directory: Path) -> None:
    """Write the reward in its published layout, adapters merged; an ensemble beside the reward that it is of."""
    reward = merged(judge).reward
    if isinstance(reward, Ensemble):
        _write(reward.base, directory)
        write_ensemble(reward, directory)
    else:
        _write(reward, directory)


def _write(reward: Fittable, directory: Path) -> None:
    match reward:
        case ImageReward():
            write_imagereward(reward.vision, reward.text, reward.mlp, reward.tokenizer, directory)
        case HPS() | PickScore():
            model = reward.similarity.model
            bounded = copy.deepcopy(model) if model.logit_scale > MAX_LOG_SCALE else model
            bounded.logit_scale.data.clamp_(max=MAX_LOG_SCALE)
            (write_hps if isinstance(reward, HPS) else write_pickscore)(bounded, reward.similarity.tokenizer, directory)


def _let_learn(judge: Judge, fitting: RewardFit) -> None:
    learns = fitting.learns
    judge.requires_grad_(learns.kind == "all")
    reward = judge.reward
    if isinstance(reward, Ensemble):
        reward.heads.requires_grad_(True)
    elif learns.kind == "lora":
        layers = _BLIP_LAYERS if isinstance(reward, ImageReward) else _CLIP_LAYERS
        add_adapter(reward, Adapter(learns.rank, float(learns.rank), layers))
    elif learns.kind != "all":
        for part in _head(reward):
            part.requires_grad_(True)
        for part in _last_blocks(reward, learns):
            part.requires_grad_(True)
    judge.log_ties.requires_grad_(fitting.loss == "davidson")


def _towers(reward: Fittable) -> tuple[nn.Module, ...]:
    return (reward.vision, reward.text) if isinstance(reward, ImageReward) else (reward.similarity.model,)


def _head(reward: Fittable) -> Iterator[nn.Module | nn.Parameter]:
    if isinstance(reward, ImageReward):
        yield reward.mlp
    else:
        model = reward.similarity.model
        yield from (model.visual_projection, model.text_projection, model.logit_scale)


def _last_blocks(reward: Fittable, learns: Learns) -> Iterator[nn.Module]:
    """Yield the blocks that learn, and the norms behind them."""
    if isinstance(reward, ImageReward):
        towers = {
            "vision_blocks": (reward.vision.encoder.layers, reward.vision.post_layernorm),
            "text_blocks": (reward.text.encoder.layer, None),
        }
    else:
        vision, text = reward.similarity.model.vision_model, reward.similarity.model.text_model
        towers = {
            "vision_blocks": (vision.encoder.layers, vision.post_layernorm),
            "text_blocks": (text.encoder.layers, text.final_layer_norm),
        }
    for field, (blocks, norm) in towers.items():
        if (count := getattr(learns, field)) > len(blocks):
            raise ValueError(f"learns.{field} = {count}: the tower has {len(blocks)}; take at most so many")
        yield from list(blocks)[len(blocks) - count :]
        if count and norm is not None:
            yield norm
