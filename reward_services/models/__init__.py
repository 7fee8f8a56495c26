"""The rewards, a file each, and the registry that finds them by kind."""

from importlib import import_module
from typing import Any

import torch

from reward_services.protocol import RewardModel
from reward_services.spec import RewardSpec
from reward_services.upstream.environment import declare_torchvision

_CLASSES = {
    "pickscore": "reward_services.models.pickscore:PickScore",
    "hps": "reward_services.models.hps:HPS",
    "hps_v2": "reward_services.models.hps:HPSv2",
    "imagereward": "reward_services.models.imagereward:ImageReward",
    "clip_score": "reward_services.models.clip_score:ClipScore",
    "ensemble": "reward_services.models.ensemble:Ensemble",
    "aesthetic": "reward_services.models.aesthetic:Aesthetic",
}
_UPSTREAM = {
    "imagereward": "reward_services.upstream.imagereward:UpstreamImageReward",
    "hps": "reward_services.upstream.hps:UpstreamHPS",
    "hps_v2": "reward_services.upstream.hps:UpstreamHPSv2",
}


def load(spec: RewardSpec) -> RewardModel:
    """Return the frozen reward of a spec, in eval mode, on its device; a ValueError names one that cannot be read."""
    try:
        model = _class(spec).load(spec.checkpoint, spec.tokenizer, spec.preprocess, getattr(torch, spec.dtype))
    except ValueError as error:
        raise ValueError(f"reward {spec.name!r}: {error}") from error
    return model.requires_grad_(False).eval().to(spec.device)


def _class(spec: RewardSpec) -> Any:
    """Import a reward's class, and its dependencies, now that it is needed; ValueError if that cannot be done here."""
    path = _CLASSES.get(spec.model, spec.model)
    if spec.backend == "upstream":
        path = _UPSTREAM[spec.model]
        declare_torchvision()  # before transformers, which imports torchvision where there is one
    module, _, name = path.partition(":")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        remedy = "put it on the PYTHONPATH of every node, or into the runtime_env of job or application"
        raise ValueError(f"model={spec.model!r} cannot be imported here ({error}): {remedy}") from error
