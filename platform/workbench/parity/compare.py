"""Native rewards beside what upstream said of the same files."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from reward_services.gradient import score_and_gradient
from reward_services.models import load
from reward_services.spec import RewardKind, RewardSpec
from workbench.parity.pictures import PROMPTS, as_tensor

SCORE_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4


@dataclass(frozen=True)
class Comparison:
    """The largest differences between native and upstream, over all pictures.

    Attributes:
        kind: of the reward.
        upstream: package and torchvision, with their versions.
        score: largest |native - upstream| of any picture over the largest |upstream|: random heads give some scores
            near zero, of which float32 rounding alone is more than the tolerance.
        gradient: norm of the difference over upstream's norm, the largest of any picture.
    """

    kind: RewardKind
    upstream: dict[str, str]
    score: float
    gradient: float

    @property
    def equal(self) -> bool:
        """Whether both lie within the tolerances; NaN does not."""
        return self.score <= SCORE_TOLERANCE and self.gradient <= GRADIENT_TOLERANCE

    def __str__(self) -> str:
        return (
            f"{self.kind:12} {self.upstream['package']:18} torchvision {self.upstream['torchvision']:9} "
            f"score {self.score:.1e}  gradient {self.gradient:.1e}  {'equal' if self.equal else 'DIFFERENT'}"
        )


def compare(kind: RewardKind, checkpoints: Path, pictures: Path, reference: Path) -> Comparison:
    """Judge the pictures natively, and compare with the file that `record` wrote of the other side."""
    model = load(RewardSpec(name=kind.replace("_", "-"), model=kind, checkpoint=str(checkpoints / kind)))
    with safe_open(reference, framework="pt") as file:
        upstream = json.loads(file.metadata()["upstream"])
        theirs = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    differences, gradients = [], []
    for index, prompt in enumerate(PROMPTS):
        images = as_tensor(Image.open(pictures / f"{index}.png"))
        score, gradient = score_and_gradient(model, images, [prompt])
        differences.append((score[0] - theirs["scores"][index]).abs())
        gradients.append(_relative(gradient, theirs[f"gradient.{index}"]))
    score = torch.stack(differences).max() / theirs["scores"].abs().max()
    # Python's max would pass over a NaN that does not come first.
    return Comparison(kind, upstream, score.item(), torch.tensor(gradients).max().item())


def _relative(ours: Tensor, theirs: Tensor) -> float:
    return (torch.linalg.vector_norm(ours - theirs) / torch.linalg.vector_norm(theirs)).item()
