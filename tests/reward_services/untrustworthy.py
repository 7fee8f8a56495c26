"""Rewards that no run should be trained on, named by their classes."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn


def means(images: Tensor) -> Tensor:
    return (images * torch.linspace(1, 2, images.shape[-1])).mean((1, 2, 3))


class Untrustworthy(nn.Module):
    @classmethod
    def load(cls, checkpoint: str, tokenizer: str | None, preprocess: str, dtype: torch.dtype) -> "Untrustworthy":
        return cls(Path(checkpoint).name)

    def __init__(self, how: str):
        super().__init__()
        self.how = how

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        return WAYS[self.how](means(images), torch.tensor([float(len(prompt)) for prompt in prompts]))


SHAPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "one score too few": lambda scores, lengths: scores[1:],
    "a column": lambda scores, lengths: scores[:, None],
    "every picture with every prompt": lambda scores, lengths: scores[:, None] * lengths,
    "one mean": lambda scores, lengths: scores.mean(),
}
WAYS = SHAPES | {
    "rounded": lambda scores, lengths: scores.mul(10).round(),
    "cut off": lambda scores, lengths: scores.clamp(max=0.1),
    "relative to its batch": lambda scores, lengths: scores - scores.mean(),
    "relative to its batch behind a detach": lambda scores, lengths: scores - scores.detach().mean(),
    "relative to the first": lambda scores, lengths: scores * 2 - scores[0].detach(),
    "of all prompts": lambda scores, lengths: scores * lengths.mean(),
    "without gradient": lambda scores, lengths: scores.detach(),
    "by numpy": lambda scores, lengths: torch.from_numpy(scores.numpy()),
    "not finite": lambda scores, lengths: scores / 0,
}
"""Score `i` from all pictures' means and all prompts' lengths."""
