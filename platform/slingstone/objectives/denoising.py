"""The loss of the assistant: denoising score matching on the generator's own samples."""

from jaxtyping import Bool, Float
from torch import Tensor

from slingstone.objectives.diffusion import at_least_fp32
from slingstone.objectives.finite import cleaned


def denoising_loss(
    prediction: Float[Tensor, "batch channel height width"],
    eps: Float[Tensor, "batch channel height width"],
) -> tuple[Float[Tensor, " batch"], Bool[Tensor, " batch"]]:
    """Return `|| eps_psi(x_t) - eps ||^2 / (C H W)` of each sample, and which samples are finite.

    In eps space with weight one this is `sigma_t^2 || s_psi - grad log p(x_t|x0) ||^2`, the usual diffusion loss.
    A sample with a non-finite prediction gets loss 0 and sends exactly zero into the prediction.

    Source: arXiv:2410.20898, the update of the "TA"; the unit weight in eps space is arXiv:2006.11239, eq. 14.
    """
    # Cleaned before the square: masking its result would multiply a zero cotangent with a non-finite derivative.
    error, finite = cleaned(at_least_fp32(prediction) - eps)
    return error.square().flatten(1).mean(1), finite
