"""The exact scores are exact."""

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from slingstone.networks.gaussian import GaussianMixture, LinearGenerator, exact_divergence_gradient, gauss_hermite
from slingstone.objectives.diffusion import NoiseSchedule
from slingstone.objectives.divergence import SquaredL2


@pytest.fixture
def schedule() -> NoiseSchedule:
    alpha = torch.tensor([0.9, 0.5], dtype=torch.float64)
    return NoiseSchedule(alpha, (1 - alpha**2).sqrt())


def wide(values: list) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_a_mixture_predicts_the_noise_of_its_diffused_density(schedule):
    means, weights = wide([[1.0, 2.0, 0.0], [-1.0, 0.5, 3.0]]), wide([0.3, 0.7])
    factors = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x_t = torch.randn(6, 3, 1, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    t = torch.tensor([0, 1, 0, 1, 0, 1])
    found = GaussianMixture(means, factors, weights, schedule)(x_t, t, {})
    for row, level in enumerate(t.tolist()):
        alpha, sigma = schedule.alpha[level], schedule.sigma[level]
        noise = sigma**2 * torch.eye(3, dtype=torch.float64)
        parts = MultivariateNormal(alpha * means, alpha**2 * factors @ factors.mT + noise)
        x = x_t[row].flatten().requires_grad_()
        density = MixtureSameFamily(Categorical(weights), parts).log_prob(x)
        (score,) = torch.autograd.grad(density, x)
        torch.testing.assert_close(found[row].flatten(), -sigma * score)


def test_the_score_network_of_a_linear_generator_is_that_of_its_gaussian(schedule):
    generator = LinearGenerator(wide([0.5, -1.0]), wide([[1.0, 0.3], [0.0, 0.5]]))
    network = generator.score_network(schedule)
    x_t = wide([[0.2, 0.7], [-1.0, 2.0]])[..., None, None]
    alpha, sigma = schedule.alpha[1], schedule.sigma[1]
    covariance = alpha**2 * generator.factor @ generator.factor.T + sigma**2 * torch.eye(2, dtype=torch.float64)
    wanted = sigma * torch.linalg.solve(covariance, (x_t.flatten(1) - alpha * generator.mean).T).T
    torch.testing.assert_close(network(x_t, torch.tensor([1, 1]), {}).flatten(1), wanted.detach())
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_quadrature_integrates_moments_of_the_normal_exactly():
    nodes, weights = gauss_hermite(5, 2)
    x, y = nodes.unbind(1)
    moments = [weights.sum(), (weights * x**2 * y**4).sum(), (weights * x**8).sum(), (weights * x**3).sum()]
    torch.testing.assert_close(torch.stack(moments), wide([1.0, 3.0, 105.0, 0.0]))


def test_the_exact_gradient_of_squared_l2_between_gaussians_is_the_closed_form(schedule):
    # y(x) = e_ref - e = sigma [ (P_r - P)(x - alpha b) + alpha P_r (b - m_r) ] with precisions P = S^-1. Fixing the law
    # of x, in the parameters of e only:
    #   dE||y||^2 / db = 2 sigma^2 alpha^2 P P_r (b - m_r),   and for the covariance
    #   dE||y||^2 = -2 sigma^2 tr[ dP S (P_r - P) ],  dP = -P dS P,  dS = alpha^2 (dA A^T + A dA^T)
    mean, factor, m_r = wide([0.5, -1.0]), wide([[1.0, 0.3], [0.0, 0.5]]), wide([0.2, 0.4])
    reference = GaussianMixture(m_r[None], torch.eye(2, dtype=torch.float64)[None], wide([1.0]), schedule)
    alpha, sigma, one = schedule.alpha[1], schedule.sigma[1], torch.eye(2, dtype=torch.float64)
    own = torch.linalg.inv(alpha**2 * factor @ factor.T + sigma**2 * one)
    other = torch.linalg.inv((alpha**2 + sigma**2) * one)
    gradient_mean = 2 * sigma**2 * alpha**2 * own @ other @ (mean - m_r)
    gradient_covariance = 2 * sigma**2 * (other - own) @ own
    symmetric = (gradient_covariance + gradient_covariance.T) / 2
    found = exact_divergence_gradient(LinearGenerator(mean, factor), reference, schedule, 1, SquaredL2(), order=6)
    torch.testing.assert_close(found[0], gradient_mean)
    torch.testing.assert_close(found[1], 2 * alpha**2 * symmetric @ factor)
