"""Pictures that a model judges before it is asked anything, and again and again, to find out if it can be trusted."""

import torch
from jaxtyping import Float
from torch import Tensor

from reward_services.gradient import score, score_and_gradient
from reward_services.protocol import NoGradientError, RewardFailedError, RewardModel
from reward_services.spec import RewardSpec

PROMPTS = ["a picture of colours", "a drawing of thin stripes"]


def pictures() -> Float[Tensor, "2 3 64 64"]:
    """Return two pictures: colours that vary over the whole range, finely and coarsely, and their negative, turned."""
    down, across = torch.meshgrid(*[torch.arange(64, dtype=torch.float64) / 63] * 2, indexing="ij")
    first = torch.stack([down, across, 0.5 + 0.5 * torch.sin(40 * down * across)]).float()
    return torch.stack([first, (1 - first).rot90(1, (1, 2))])


def start(spec: RewardSpec, model: RewardModel) -> float:
    """Return the first picture's score by a model that is about to be used, wherever that is.

    Raises:
        RewardFailedError: the score is off; an answer is not finite, or of another shape than the contract's; the
            gradient of one of the pictures is zero; or its score depends on the other. Scores without any gradient
            are let through: such a reward can be held out.
    """
    found = check(spec, model)
    both = pictures().to(spec.device)
    scores, gradient = _judged(spec, model, both, PROMPTS)
    for row in range(2):
        if gradient is not None and not gradient[row].any():
            reason = f"the gradient of test picture {row} is zero everywhere: nothing can be learned from a score"
            raise RewardFailedError(spec.name, f"{reason} that is rounded, cut off, or relative to its batch")
        # As many pictures as before, so that the same kernels compute them.
        twice = score(model, both[[row, row]], [PROMPTS[row]] * 2, spec.name)
        beside_another, beside_itself = float(scores[row]), float(twice[row])
        if not spec.same_score(beside_another, beside_itself):
            reason = f"a picture scores {beside_another:.6g} beside another, {beside_itself:.6g} beside itself"
            raise RewardFailedError(spec.name, f"{reason}: make score i depend on picture i and prompt i alone")
    return found


def differentiable(spec: RewardSpec, model: RewardModel) -> bool:
    """Tell whether a model's scores have a gradient with respect to the pictures, without which none is trained on."""
    return _judged(spec, model, pictures()[:1].to(spec.device), PROMPTS[:1])[1] is not None


def check(spec: RewardSpec, model: RewardModel, found_before: float | None = None) -> float:
    """Return the first picture's score; RewardFailedError if it is off, or something is not finite.

    Args:
        spec: names the reward, and the score if it is known.
        model: on the spec's device.
        found_before: what this model said when it started; counts only if the spec does not know the score.
    """
    found = float(_judged(spec, model, pictures()[:1].to(spec.device), PROMPTS[:1])[0])
    expected = found_before if spec.self_test_score is None else spec.self_test_score
    if expected is not None and not spec.same_score(found, expected):
        raise RewardFailedError(
            spec.name, f"the test picture scores {found:.6g}, expected {expected:.6g}: weights or device are damaged"
        )
    return found


def _judged(spec: RewardSpec, model: RewardModel, images: Tensor, prompts: list[str]) -> tuple[Tensor, Tensor | None]:
    try:
        scores, gradient = score_and_gradient(model, images, prompts, spec.name)
    except (NoGradientError, RuntimeError) as error:
        # Such as numpy() of a tensor that requires a gradient: then without one.
        if not isinstance(error, NoGradientError) and "grad" not in str(error):
            raise
        scores, gradient = score(model, images, prompts, spec.name), None
    if not (scores.isfinite().all() and (gradient is None or gradient.isfinite().all())):
        said = (
            f"checkpoint {spec.checkpoint!r} gives {scores.tolist()} for test pictures, or their gradient is not finite"
        )
        raise RewardFailedError(spec.name, said)
    return scores, gradient
