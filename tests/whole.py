"""Whole weights of which every rank has a part."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from slingstone.engines.masters import gather
from slingstone.step.ema import Fragment


def whole(module: nn.Module, part: Mapping[str, Fragment]) -> dict[str, Tensor]:
    """Return what is trained of a module out of the ranks' parts, in fp32 on the CPU; a collective."""
    trained: dict[str, Any] = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
    # ZeRO-3 leaves weights without a shape.
    shapes = {name: getattr(weight, "ds_shape", weight.shape) for name, weight in trained.items()}
    weights = {name: torch.empty(shape, device=trained[name].device) for name, shape in shapes.items()}
    gather(part, weights)
    return {name: weight.cpu() for name, weight in weights.items()}
