"""The blocks that networks and autoencoders are made of, compiled one by one."""

import torch
from torch import nn

REPEATED = ("BasicTransformerBlock", "JointTransformerBlock", "ResnetBlock2D")
"""Classes of diffusers that occur many times in a network; compiled once for each shape, they are all compiled."""
RECOMPILES = 64
"""Widths, sizes of batches and ways of the gradients that such a class meets; torch gives up after 8."""


def compile_blocks(module: nn.Module) -> None:
    """Compile every repeated block, when it is first called."""
    torch._dynamo.config.recompile_limit = RECOMPILES
    for block in module.modules():
        if type(block).__name__ in REPEATED:
            block.compile()
