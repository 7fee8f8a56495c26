"""A 2-D Gaussian generator against a mixture: every score is exact, every expectation a quadrature, all in float64."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from slingstone.networks.gaussian import GaussianMixture, LinearGenerator, gauss_hermite
from slingstone.objectives.diffusion import NoiseSchedule
from slingstone.objectives.divergence import ScoreNetworks


def wide(values: list) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@dataclass(frozen=True)
class Toy:
    schedule: NoiseSchedule
    reference: GaussianMixture
    unconditional: GaussianMixture
    generator: LinearGenerator
    assistant: GaussianMixture
    """The generator's own score: the theorem holds for no other."""

    @property
    def networks(self) -> ScoreNetworks:
        return ScoreNetworks(
            assistant=lambda x_t, t: self.assistant(x_t, t, {}),
            conditional=lambda x_t, t: self.reference(x_t, t, {}),
            unconditional=lambda x_t, t: self.unconditional(x_t, t, {}),
        )

    def expected_gradient(self, gradient_at: Callable[[Tensor, Tensor], Tensor], order: int) -> Tensor:
        """Return `E_{z,eps} [ gradient_at(x0, eps)^T dx0/dtheta ]` for all parameters in one vector."""
        nodes, weights = gauss_hermite(order, 4)
        z, eps = nodes[:, :2, None, None], nodes[:, 2:, None, None]
        x0 = self.generator(z, {})
        surrogate = (weights.view(-1, 1, 1, 1) * gradient_at(x0.detach(), eps) * x0).sum()
        gradients = torch.autograd.grad(surrogate, list(self.generator.parameters()))
        return torch.cat([gradient.flatten() for gradient in gradients])


@pytest.fixture
def toy() -> Toy:
    alpha = wide([0.995, 0.9, 0.6, 0.3])
    schedule = NoiseSchedule(alpha, (1 - alpha**2).sqrt())
    means, factors = wide([[1.5, 0.5], [-1.0, -1.2]]), wide([[[0.6, 0.1], [0.0, 0.5]], [[0.5, 0.0], [-0.3, 0.7]]])
    generator = LinearGenerator(wide([0.3, -0.4]), wide([[0.9, 0.3], [-0.2, 0.6]]))
    return Toy(
        schedule=schedule,
        reference=GaussianMixture(means, factors, wide([0.6, 0.4]), schedule).requires_grad_(False),
        unconditional=GaussianMixture(means * 0.3, factors * 1.5, wide([0.5, 0.5]), schedule).requires_grad_(False),
        generator=generator,
        assistant=generator.score_network(schedule),
    )
