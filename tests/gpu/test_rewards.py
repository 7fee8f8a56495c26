"""Rewards on the device give the CPU's scores and image gradients."""

import pytest
import torch
from torch import Tensor

from tests.gpu.place import Place, relative, say, without_tf32

pytestmark = pytest.mark.gpu

KINDS = ("pickscore", "hps", "imagereward")
PROMPTS = ["a red circle", "it's a blue square on green", "green"]
# fp32 against fp32, sums in another order: see test_networks.py.
SMOOTH = 5e-4
# Pictures are rounded to the 8-bit grid after resizing: where another order of sums takes a tie the other way, a pixel
# is one step of 1/255 off. One pixel in a thousand moves these scores by 5e-4 and their gradients by 1e-3 (measured).
EXACT = 1e-2
# bf16 towers: two layers deep an embedding is good to about 2 %, a cosine's slope to that of its angle.
BF16_COSINE = 0.95


def pictures() -> Tensor:
    """Return three pictures on the 8-bit grid, of another size and shape than the models'."""
    return (torch.rand(3, 3, 31, 44, generator=torch.Generator().manual_seed(0)) * 255).round() / 255


def judged(root, kind: str, device: torch.device, **options: str) -> tuple[Tensor, Tensor]:
    """Return scores and gradients, on the CPU."""
    from reward_services.gradient import score_and_gradient
    from reward_services.models import load
    from reward_services.spec import RewardSpec

    spec = RewardSpec(name=kind, model=kind, checkpoint=str(root / kind), device=str(device), **options)
    scores, gradient = score_and_gradient(load(spec), pictures().to(device), PROMPTS)
    assert scores.device.type == gradient.device.type == device.type
    return scores.cpu(), gradient.cpu()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("preprocess", "tolerance"), [("smooth", SMOOTH), ("exact", EXACT)])
def test_scores_and_gradients_are_those_of_the_cpu(
    place: Place, rewards_root, kind: str, preprocess: str, tolerance: float
) -> None:
    expected = judged(rewards_root, kind, torch.device("cpu"), preprocess=preprocess)
    with without_tf32():
        found = judged(rewards_root, kind, place.device, preprocess=preprocess)
    errors = [relative(*pair) for pair in zip(found, expected, strict=True)]
    say(f"{kind}, {preprocess}: scores {errors[0]:.1e}, gradients {errors[1]:.1e} (tolerance {tolerance:.0e})")
    assert max(errors) < tolerance
    default = judged(rewards_root, kind, place.device, preprocess=preprocess)
    errors = [relative(*pair) for pair in zip(default, expected, strict=True)]
    say(f"{kind}, {preprocess}, TF32 convolutions as by default: scores {errors[0]:.1e}, gradients {errors[1]:.1e}")
    assert max(errors) < EXACT


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_towers_point_the_same_way(place: Place, rewards_root, kind: str) -> None:
    _, expected = judged(rewards_root, kind, torch.device("cpu"))
    _, found = judged(rewards_root, kind, place.device, dtype="bfloat16")
    cosines = torch.cosine_similarity(found.flatten(1), expected.flatten(1))
    say(f"{kind}, bf16: cosines of the gradients {[round(value, 4) for value in cosines.tolist()]}")
    assert float(cosines.min()) > BF16_COSINE
