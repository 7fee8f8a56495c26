"""A reward that is late: to measure how much of a latency is hidden, and to test services that are at work."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from reward_services import models, self_test
from reward_services.spec import PreprocessMode, RewardSpec

Spec = TypeVar("Spec", bound=RewardSpec)


def late(spec: Spec, latency_s: float) -> Spec:
    """Return a reward that waits before each forward pass, but not for the test pictures."""
    checkpoint = f"{spec.model} {latency_s} {spec.checkpoint}"
    return spec.model_copy(update={"model": f"{__name__}:LateReward", "checkpoint": checkpoint})


class LateReward:
    """Loads another reward, whose kind, latency and checkpoint make up the `checkpoint` of a spec."""

    @classmethod
    def load(cls, checkpoint: str, tokenizer: str | Path | None, preprocess: PreprocessMode, dtype: torch.dtype) -> Any:
        """Return the reward with its latency, of a subclass of its own class."""
        model, latency_s, path = checkpoint.split(" ", 2)
        options = {"tokenizer": tokenizer, "preprocess": preprocess, "dtype": str(dtype).removeprefix("torch.")}
        reward: Any = models.load(RewardSpec(name="late", model=model, checkpoint=path, **options))

        class Late(type(reward)):
            def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
                if not set(prompts) <= set(self_test.PROMPTS):
                    time.sleep(float(latency_s))
                return super().score(images, prompts)

        reward.__class__ = Late
        return reward
