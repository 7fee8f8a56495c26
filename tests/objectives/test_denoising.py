"""The assistant's loss."""

import torch

from slingstone.networks.gaussian import gauss_hermite
from slingstone.objectives.denoising import denoising_loss
from slingstone.objectives.diffusion import diffuse


def test_the_optimum_is_the_conditional_mean_of_the_noise(toy):
    # E ||e(x_t) - eps||^2 is least at e = E[eps|x_t] = -sigma_t score: at the generator's own score network the
    # gradient in its parameters vanishes, and away from it the loss is larger.
    nodes, weights = gauss_hermite(6, 4)
    z, eps = nodes[:, :2, None, None], nodes[:, 2:, None, None]
    t = torch.full((len(z),), 2)
    x_t = diffuse(toy.generator(z, {}).detach(), eps, *toy.schedule.at(t))

    def expected() -> torch.Tensor:
        losses, finite = denoising_loss(toy.assistant(x_t, t, {}), eps)
        assert finite.all()
        return (weights * losses).sum()

    toy.assistant.requires_grad_(True)
    best = expected()
    gradients = torch.autograd.grad(best, [toy.assistant.means, toy.assistant.factors])
    assert max(float(gradient.abs().max()) for gradient in gradients) < 1e-12  # a polynomial: the quadrature is exact
    with torch.no_grad():
        toy.assistant.means += 0.01
        assert float(expected()) > float(best.detach())


def test_each_sample_has_the_mean_squared_error_of_its_own_elements():
    prediction, eps = torch.zeros(2, 1, 2, 2), torch.tensor([1.0, 3.0]).view(2, 1, 1, 1).expand(2, 1, 2, 2)
    assert denoising_loss(prediction, eps)[0].tolist() == [1.0, 9.0]


def test_a_prediction_that_is_not_finite_costs_nothing_and_sends_zero_back():
    prediction = torch.tensor([1.0, float("inf"), float("nan")]).view(3, 1, 1, 1).requires_grad_()
    losses, finite = denoising_loss(prediction, torch.zeros(3, 1, 1, 1))
    losses.sum().backward()
    assert finite.tolist() == [True, False, False]
    assert losses.tolist() == [1.0, 0.0, 0.0]
    assert prediction.grad is not None
    assert prediction.grad.flatten().tolist() == [2.0, 0.0, 0.0]
