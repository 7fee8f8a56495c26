"""Noise schedules, the forward process and conversions between predictions.

Symbols: `x_t = alpha_t x0 + sigma_t eps`, `eps ~ N(0, I)`; the score is `-eps / sigma_t`.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

Prediction = Literal["eps", "x0", "v", "flow", "score"]
"""What a network's output means: `v = alpha_t eps - sigma_t x0`, `flow = eps - x0`, `score = -eps / sigma_t`."""


@dataclass(frozen=True)
class NoiseSchedule:
    """`alpha_t` and `sigma_t` as tables over integer timesteps `0 .. T-1`, in fp32.

    The dtype of the tables is the dtype of the objectives' arithmetic: a test may ask for float64.
    """

    alpha: Float[Tensor, " steps"]
    sigma: Float[Tensor, " steps"]

    @classmethod
    def from_alphas_cumprod(cls, alphas_cumprod: Float[Tensor, " steps"]) -> "NoiseSchedule":
        """Return the variance-preserving schedule `alpha_t^2 = alphas_cumprod_t`, `sigma_t^2 = 1 - alpha_t^2`.

        Raises:
            ValueError: if an entry does not lie in (0, 1).
        """
        if not bool(((alphas_cumprod > 0) & (alphas_cumprod < 1)).all()):
            span = f"[{float(alphas_cumprod.min()):g}, {float(alphas_cumprod.max()):g}]"
            raise ValueError(f"alphas_cumprod spans {span}, must lie inside (0, 1): use a table without terminal zeros")
        wide = alphas_cumprod.double()
        return cls(wide.sqrt().float(), (1 - wide).sqrt().float())

    @classmethod
    def from_betas(cls, betas: Float[Tensor, " steps"]) -> "NoiseSchedule":
        """Return the variance-preserving schedule with `alpha_t^2 = prod_{s<=t} (1 - beta_s)`."""
        return cls.from_alphas_cumprod((1 - betas.double()).cumprod(0))

    @classmethod
    def from_flow_sigmas(cls, sigmas: Float[Tensor, " steps"]) -> "NoiseSchedule":
        """Return the linear flow-matching schedule `alpha_t = 1 - sigma_t`, `sigma_t` as given.

        Raises:
            ValueError: if an entry does not lie in (0, 1].
        """
        if not bool(((sigmas > 0) & (sigmas <= 1)).all()):
            span = f"[{float(sigmas.min()):g}, {float(sigmas.max()):g}]"
            raise ValueError(f"sigmas spans {span}, must lie inside (0, 1]: drop the scheduler's terminal zero")
        wide = sigmas.double()
        return cls((1 - wide).float(), wide.float())

    def to(self, device: torch.device | str) -> "NoiseSchedule":
        """Return the tables on a device: reading one that lies elsewhere makes a GPU wait for the host."""
        return NoiseSchedule(self.alpha.to(device), self.sigma.to(device))

    def __len__(self) -> int:
        """Return the number of timesteps."""
        return len(self.alpha)

    def at(self, t: Int[Tensor, " batch"]) -> tuple[Float[Tensor, "batch 1 1 1"], Float[Tensor, "batch 1 1 1"]]:
        """Return `alpha_t, sigma_t`, shaped to scale a batch of latents."""
        view = (-1, 1, 1, 1)
        return self.alpha.to(t.device)[t].view(view), self.sigma.to(t.device)[t].view(view)


def at_least_fp32(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return `x` in fp32 where it is narrower, untouched otherwise."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def diffuse(
    x0: Float[Tensor, "batch channel height width"],
    eps: Float[Tensor, "batch channel height width"],
    alpha: Float[Tensor, "batch 1 1 1"],
    sigma: Float[Tensor, "batch 1 1 1"],
) -> Float[Tensor, "batch channel height width"]:
    """Return `x_t = alpha_t x0 + sigma_t eps`."""
    return alpha * at_least_fp32(x0) + sigma * at_least_fp32(eps)


def eps_from(
    kind: Prediction,
    prediction: Float[Tensor, "batch channel height width"],
    x_t: Float[Tensor, "batch channel height width"],
    alpha: Float[Tensor, "batch 1 1 1"],
    sigma: Float[Tensor, "batch 1 1 1"],
) -> Float[Tensor, "batch channel height width"]:
    """Return the eps that a prediction of any kind implies.

    Holds for any `alpha_t, sigma_t`, not only `alpha_t^2 + sigma_t^2 = 1`; divides by `sigma_t` for x0 alone, by
    `alpha_t` never.
    """
    x_t, prediction = at_least_fp32(x_t), at_least_fp32(prediction)
    match kind:
        case "eps":
            return prediction
        case "x0":
            return (x_t - alpha * prediction) / sigma
        case "v":
            return (alpha * prediction + sigma * x_t) / (alpha.square() + sigma.square())
        case "flow":
            return (x_t + alpha * prediction) / (alpha + sigma)
        case "score":
            return -sigma * prediction


def x0_from(
    kind: Prediction,
    prediction: Float[Tensor, "batch channel height width"],
    x_t: Float[Tensor, "batch channel height width"],
    alpha: Float[Tensor, "batch 1 1 1"],
    sigma: Float[Tensor, "batch 1 1 1"],
) -> Float[Tensor, "batch channel height width"]:
    """Return the x0 that a prediction of any kind implies; divides by `alpha_t` for eps and score alone."""
    x_t, prediction = at_least_fp32(x_t), at_least_fp32(prediction)
    match kind:
        case "x0":
            return prediction
        case "v":
            return (alpha * x_t - sigma * prediction) / (alpha.square() + sigma.square())
        case "flow":
            return (x_t - sigma * prediction) / (alpha + sigma)
        case "eps" | "score":
            return (x_t - sigma * eps_from(kind, prediction, x_t, alpha, sigma)) / alpha


def eps_to(
    kind: Prediction,
    eps: Float[Tensor, "batch channel height width"],
    x_t: Float[Tensor, "batch channel height width"],
    alpha: Float[Tensor, "batch 1 1 1"],
    sigma: Float[Tensor, "batch 1 1 1"],
) -> Float[Tensor, "batch channel height width"]:
    """Return eps as a prediction of another kind: the inverse of `eps_from`."""
    x_t, eps = at_least_fp32(x_t), at_least_fp32(eps)
    match kind:
        case "eps":
            return eps
        case "x0":
            return (x_t - sigma * eps) / alpha
        case "v":
            return ((alpha.square() + sigma.square()) * eps - sigma * x_t) / alpha
        case "flow":
            return ((alpha + sigma) * eps - x_t) / alpha
        case "score":
            return -eps / sigma
