"""Gaussians and their mixtures, whose diffused scores are known exactly: the theory, executable on a CPU.

Latents are flattened: `channel * height * width = dimension`. Networks take a condition and ignore it.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from slingstone.networks.protocol import Condition
from slingstone.objectives.diffusion import NoiseSchedule
from slingstone.objectives.divergence import PseudoHuber, SquaredL2


class GaussianMixture(nn.Module):
    """The eps prediction of `p = sum_k weight_k N(mean_k, factor_k factor_k^T)`, exact at every noise level.

    Means and factors are parameters, so that a mixture can also be learned by the assistant's loss.
    """

    def __init__(
        self,
        means: Float[Tensor, "component dimension"],
        factors: Float[Tensor, "component dimension dimension"],
        weights: Float[Tensor, " component"],
        schedule: NoiseSchedule,
    ) -> None:
        super().__init__()
        self.means = nn.Parameter(means.clone())
        self.factors = nn.Parameter(factors.clone())
        self.register_buffer("log_weights", weights.log())
        self.schedule = schedule

    def forward(
        self, x_t: Float[Tensor, "batch channel height width"], t: Int[Tensor, " batch"], condition: Condition
    ) -> Float[Tensor, "batch channel height width"]:
        """Return `-sigma_t grad log p_t(x_t)`, components `N(alpha_t mean_k, alpha_t^2 C_k + sigma_t^2 I)`."""
        # One factorisation a level, not one a sample: all that is cubic in the dimension happens on `levels`.
        levels, index = t.unique(return_inverse=True)
        alpha, sigma = self.schedule.at(levels)
        identity = torch.eye(self.means.shape[1], dtype=x_t.dtype, device=x_t.device)
        covariance = alpha.square() * (self.factors @ self.factors.mT) + sigma.square() * identity
        precision, log_determinant = torch.linalg.inv(covariance), torch.logdet(covariance)
        offset = x_t.flatten(1)[:, None] - (alpha[:, 0] * self.means)[index]
        whitened = torch.einsum("bkij,bkj->bki", precision[index], offset)
        log_density = -0.5 * ((offset * whitened).sum(-1) + log_determinant[index])
        responsibility = (self.get_buffer("log_weights") + log_density).softmax(1)[..., None]
        return (sigma[index, 0, 0] * (responsibility * whitened).sum(1)).view_as(x_t)


class LinearGenerator(nn.Module):
    """`x0 = factor z + mean`: a one-step generator of a Gaussian, whose own score is therefore known."""

    def __init__(self, mean: Float[Tensor, " dimension"], factor: Float[Tensor, "dimension dimension"]) -> None:
        super().__init__()
        self.mean = nn.Parameter(mean.clone())
        self.factor = nn.Parameter(factor.clone())

    def forward(
        self, z: Float[Tensor, "batch channel height width"], condition: Condition
    ) -> Float[Tensor, "batch channel height width"]:
        """Return the samples."""
        return (z.flatten(1) @ self.factor.T + self.mean).view_as(z)

    def score_network(self, schedule: NoiseSchedule) -> GaussianMixture:
        """Return the exact score network of the present generator, weights copied and frozen."""
        one = torch.ones(1, dtype=self.mean.dtype)
        network = GaussianMixture(self.mean.detach()[None], self.factor.detach()[None], one, schedule)
        return network.requires_grad_(False)


def gauss_hermite(order: int, dimension: int) -> tuple[Float[Tensor, "node dimension"], Float[Tensor, " node"]]:
    """Return nodes and weights with `sum_i weight_i f(node_i) = E f(z)`, `z ~ N(0, I)`, in float64.

    Exact for polynomials up to degree `2 order - 1` in each coordinate (Golub and Welsch, 1969).
    """
    off_diagonal = torch.arange(1, order, dtype=torch.float64).sqrt()
    nodes, vectors = torch.linalg.eigh(off_diagonal.diag(1) + off_diagonal.diag(-1))
    weights = vectors[0].square()
    grid = torch.cartesian_prod(*[nodes] * dimension).view(-1, dimension)
    return grid, torch.cartesian_prod(*[weights] * dimension).view(-1, dimension).prod(1)


def exact_divergence_gradient(
    generator: LinearGenerator,
    reference: GaussianMixture,
    schedule: NoiseSchedule,
    t: int,
    distance: SquaredL2 | PseudoHuber,
    order: int = 80,
) -> tuple[Float[Tensor, " dimension"], Float[Tensor, "dimension dimension"]]:
    """Return `d/d theta E_{x_t ~ p_sg[theta],t} d(e_ref(x_t) - e_theta(x_t))` by quadrature over `x_t`.

    The definition itself, without the score projection identity that the surrogate loss stands on: the points `x_t`
    are constants, and the generator's score is differentiated in its parameters.

    Returns:
        The gradients of mean and factor, for `w'(t) = 1`.

    Source: arXiv:2410.20898, the divergence before it is made tractable.
    """
    dimension = len(generator.mean)
    nodes, weights = gauss_hermite(order, dimension)
    level = torch.full((len(nodes),), t)
    alpha, sigma = (table.double().view(-1, 1) for table in schedule.at(level))
    mean, factor = (parameter.detach().double().requires_grad_() for parameter in (generator.mean, generator.factor))
    covariance = alpha[0] ** 2 * factor @ factor.T + sigma[0] ** 2 * torch.eye(dimension, dtype=torch.float64)
    x_t = (nodes @ torch.linalg.cholesky(covariance).T + alpha * mean).detach()
    with torch.no_grad():
        wanted = reference(x_t[..., None, None], level, {}).flatten(1)
    own = sigma * torch.linalg.solve(covariance, (x_t - alpha * mean).T).T
    expected = (weights * distance.value((wanted - own)[..., None, None])).sum()
    gradient_mean, gradient_factor = torch.autograd.grad(expected, (mean, factor))
    return gradient_mean, gradient_factor
