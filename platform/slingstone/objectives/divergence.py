"""Divergence between the one-step generator and the reference, as a gradient with respect to `x0`.

Everything is written in eps space, where both networks are `O(1)` at every noise level:

    x_t = alpha_t x0 + sigma_t eps
    e~  = e_ref(x_t|c) + alpha_cfg ( e_ref(x_t|c) - e_ref(x_t|null) )     inner guidance
    y   = e~ - e_psi                                                      = sigma_t (s_psi - s~_ref)
    v   = e_psi - eps                                                     = -sigma_t (s_psi - grad log p(x_t|x0))
    L   = w'(t) sum_CHW d'(y) v                                           one value a sample, to be minimised

The gradient flows through `x_t` in both factors, hence through the inputs of all networks; their weights stay fixed.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from slingstone.objectives.diffusion import NoiseSchedule, at_least_fp32, diffuse

EpsFunction = Callable[[Tensor, Tensor], Tensor]
"""A score network with its condition bound: `(x_t, t) -> eps`. Row i of the result depends on row i of `x_t` only."""
Passes = dict[tuple[str, ...], EpsFunction]
"""Score functions by the names of their outputs, which lie above each other in a batch."""


@dataclass(frozen=True)
class SquaredL2:
    """`d(y) = ||y||^2`. Source: arXiv:2404.04057, whose loss with alpha = 1 this is, up to the factor 2."""

    def value(self, y: Float[Tensor, "batch channel height width"]) -> Float[Tensor, " batch"]:
        """Return `d(y)` of each sample."""
        return y.square().flatten(1).sum(1)

    def derivative(self, y: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch channel height width"]:
        """Return `d'(y) = 2 y`."""
        return 2 * y


@dataclass(frozen=True)
class PseudoHuber:
    """`d(y) = sqrt(||y||^2 + c^2) - c` with `c = constant * sqrt(C H W)` in eps space.

    The norm runs over the whole sample or, with `per="element"`, over each element on its own with `c = constant`,
    summed. The paper states neither `c` nor the span of the norm; the default is iCT's rule (arXiv:2310.14189).

    Source: arXiv:2410.20898; without rewards arXiv:2410.16794, sec. 3.3.
    """

    constant: float = 0.00054
    per: Literal["sample", "element"] = "sample"

    def __post_init__(self) -> None:
        if not self.constant > 0:
            raise ValueError(f"constant is {self.constant}, must be positive: y = 0 at the start would give 0 / 0")

    def _root(self, y: Float[Tensor, "batch channel height width"]) -> tuple[Tensor, float]:
        if self.per == "element":
            return (y.square() + self.constant**2).sqrt(), self.constant
        c = self.constant * y[0].numel() ** 0.5
        return (y.square().sum((1, 2, 3), keepdim=True) + c**2).sqrt(), c

    def value(self, y: Float[Tensor, "batch channel height width"]) -> Float[Tensor, " batch"]:
        """Return `d(y)` of each sample."""
        root, c = self._root(y)
        return (root - c).flatten(1).sum(1)

    def derivative(self, y: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch channel height width"]:
        """Return `d'(y) = y / sqrt(||y||^2 + c^2)`."""
        return y / self._root(y)[0]


@dataclass(frozen=True)
class IntegralKL:
    """KL between the diffused marginals, the baseline: gradient `w'(t) alpha_t y`, networks without gradient.

    Source: arXiv:2305.18455; with rewards arXiv:2410.18881.
    """

    def value(self, y: Float[Tensor, "batch channel height width"]) -> Float[Tensor, " batch"]:
        """Return `||y||^2`: a progress measure only, as the KL itself is not estimated."""
        return y.square().flatten(1).sum(1)


Distance = SquaredL2 | PseudoHuber | IntegralKL


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance as an implicit reward; `scale = alpha_cfg`, so guidance is `1 + scale`, 0 is none.

    `inner` guides the reference inside `y`. `outer` leaves `y` alone and adds
    `L_cfg = alpha_cfg w'(t) { e_ref(sg[x_t]|c) - e_ref(sg[x_t]|null) }^T x_t`; the two coincide for `IntegralKL`.

    Source: arXiv:2410.20898 tabulates both; the formulas are a reading of it. The same `w'(t)` multiplies both
    losses, which for `SquaredL2` is one reading of two (there `w' = w / sigma_t^2` in one and `w / sigma_t` in other).
    """

    kind: Literal["inner", "outer"] = "inner"
    scale: float = 0.0


@dataclass(frozen=True)
class Divergence:
    """Which divergence, how weighted and how computed.

    Attributes:
        distance: `d(y)`.
        guidance: classifier-free guidance of the reference.
        weighting: `w'(t)` = 1, `sigma_t / alpha_t` (which gives the loss in x0 space) or `1 / sigma_t`.
        flow: `full`; or, **biased** and for comparison only, `detach_distance`, which treats `d'(y)` as a constant, or
            `detach_networks`, which runs both networks without gradient, as if `L` were written in x0 space: it trains,
            but towards another aim, for `SquaredL2` exactly with twice the gradient of `IntegralKL`.
        gradient: `direct` holds the graphs of all networks at once; `recomputed` one at a time, for 12 instead of
            9 forward passes' worth of work. Both give the same gradient.
    """

    distance: Distance = field(default_factory=PseudoHuber)
    guidance: Guidance = field(default_factory=Guidance)
    weighting: Literal["one", "sigma_over_alpha", "inverse_sigma"] = "one"
    flow: Literal["full", "detach_distance", "detach_networks"] = "full"
    gradient: Literal["direct", "recomputed"] = "direct"


@dataclass(frozen=True)
class ScoreNetworks:
    """The score functions of one batch, conditions bound. `unconditional` is called only if guidance needs it.

    Attributes:
        joint: `conditional` above `unconditional` in a batch of twice the size, for one pass in the place of two. It
            is not used where one of them is differentiated and the other is not.
    """

    assistant: EpsFunction
    conditional: EpsFunction
    unconditional: EpsFunction
    joint: Callable[[Tensor, Tensor], Float[Tensor, "twice channel height width"]] | None = None

    def passes(self, divergence: Divergence) -> Passes:
        """Return the passes that a divergence needs, each by the names of the outputs that lie above each other."""
        passes: Passes = {("assistant",): self.assistant}
        if not divergence.guidance.scale:
            return passes | {("conditional",): self.conditional}
        pair, attached = ("conditional", "unconditional"), _attached(divergence)
        if self.joint is not None and len({name in attached for name in pair}) == 1:
            return passes | {pair: self.joint}
        return passes | {("conditional",): self.conditional, ("unconditional",): self.unconditional}


class DivergenceGradient(NamedTuple):
    """What the divergence says about each sample, nothing averaged over the batch.

    Attributes:
        loss: the surrogate; its value is no measure of progress, its gradient is right.
        gradient: d loss_i / d x0_i.
        distance: d(y_i), a measure of progress.
        y_norm: Euclidean norm of y_i.
    """

    loss: Float[Tensor, " batch"]
    gradient: Float[Tensor, "batch channel height width"]
    distance: Float[Tensor, " batch"]
    y_norm: Float[Tensor, " batch"]


def divergence_gradient(
    networks: ScoreNetworks,
    schedule: NoiseSchedule,
    x0: Float[Tensor, "batch channel height width"],
    t: Int[Tensor, " batch"],
    eps: Float[Tensor, "batch channel height width"],
    divergence: Divergence,
) -> DivergenceGradient:
    """Return the gradient of the divergence with respect to each generated sample.

    Args:
        networks: the weights must not require gradients, the memory of `recomputed` rests on it.
        schedule: the forward process.
        x0: generated samples; only their values count.
        t: noise levels, the same for all networks.
        eps: the noise, the same for all networks.
        divergence: what to compute.

    Source: arXiv:2410.20898; without rewards arXiv:2410.16794, sec. 3.2.
    Differs: eps space and the split into one graph at a time are ours.
    """
    alpha, sigma = schedule.at(t)
    x_t = diffuse(x0.detach(), eps, alpha, sigma).requires_grad_()
    passes, attached = networks.passes(divergence), _attached(divergence)

    outputs: dict[str, Tensor] = {}
    for names, function in passes.items():
        with torch.set_grad_enabled(divergence.gradient == "direct" and names[0] in attached):
            outputs |= dict(zip(names, at_least_fp32(function(x_t, t)).chunk(len(names)), strict=True))
    leaves = dict(outputs)
    if divergence.gradient == "recomputed":
        leaves = {name: output.detach().requires_grad_(name in attached) for name, output in outputs.items()}
    with torch.enable_grad():
        loss, y = _surrogate(leaves, x_t, eps, alpha, sigma, divergence)

    # Row i depends on sample i only, so the gradient of the sum holds the gradient of each.
    if divergence.gradient == "direct":
        (gradient,) = torch.autograd.grad(loss.sum(), x_t)
    else:
        gradient = _recomputed(passes, leaves, x_t, t, loss)
    y = y.detach()
    return DivergenceGradient(
        loss.detach(), alpha * gradient, divergence.distance.value(y), y.square().flatten(1).sum(1).sqrt()
    )


def _attached(divergence: Divergence) -> tuple[str, ...]:
    """Return the networks whose inputs carry gradient."""
    if isinstance(divergence.distance, IntegralKL) or divergence.flow == "detach_networks":
        return ()
    if divergence.flow == "detach_distance":
        return ("assistant",)
    if divergence.guidance.kind == "outer":
        return ("assistant", "conditional")
    return ("assistant", "conditional", "unconditional")


def _surrogate(
    outputs: dict[str, Tensor],
    x_t: Float[Tensor, "batch channel height width"],
    eps: Float[Tensor, "batch channel height width"],
    alpha: Float[Tensor, "batch 1 1 1"],
    sigma: Float[Tensor, "batch 1 1 1"],
    divergence: Divergence,
) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch channel height width"]]:
    """Return the loss of each sample and `y`, as functions of the networks' outputs and of `x_t`."""
    guidance, distance = divergence.guidance, divergence.distance
    guided = outputs["conditional"]
    pull = guided - outputs["unconditional"] if guidance.scale else torch.zeros_like(guided)
    if guidance.kind == "inner":
        guided = guided + guidance.scale * pull
    y = guided - outputs["assistant"]
    if isinstance(distance, IntegralKL):
        terms = y.detach() * x_t
    elif divergence.flow == "detach_networks":
        terms = distance.derivative(y).detach() * x_t
    else:
        u = distance.derivative(y)
        terms = (u.detach() if divergence.flow == "detach_distance" else u) * (outputs["assistant"] - eps)
    if guidance.kind == "outer" and guidance.scale:
        terms = terms + guidance.scale * pull.detach() * x_t
    return (_weight(divergence, alpha, sigma) * terms).flatten(1).sum(1), y


def _weight(
    divergence: Divergence, alpha: Float[Tensor, "batch 1 1 1"], sigma: Float[Tensor, "batch 1 1 1"]
) -> Float[Tensor, "batch 1 1 1"]:
    """Return `w'(t)`."""
    match divergence.weighting:
        case "one":
            return torch.ones_like(sigma)
        case "sigma_over_alpha":
            return sigma / alpha
        case "inverse_sigma":
            return 1 / sigma


def _recomputed(
    passes: Passes,
    leaves: dict[str, Tensor],
    x_t: Float[Tensor, "batch channel height width"],
    t: Int[Tensor, " batch"],
    loss: Float[Tensor, " batch"],
) -> Float[Tensor, "batch channel height width"]:
    """Return d loss / d x_t: the direct part, plus `J^T dloss/de` of one pass after the other."""
    attached = [names for names in passes if leaves[names[0]].requires_grad]
    outputs = [leaves[name] for names in attached for name in names]
    gradient, *cotangents = torch.autograd.grad(loss.sum(), [x_t, *outputs], allow_unused=True, materialize_grads=True)
    for names in attached:
        cotangent, cotangents = torch.cat(cotangents[: len(names)]), cotangents[len(names) :]
        x = x_t.detach().requires_grad_()
        with torch.enable_grad():
            output = passes[names](x, t)
        (part,) = torch.autograd.grad(output, x, cotangent.to(output.dtype))
        gradient = gradient + part
    return gradient
