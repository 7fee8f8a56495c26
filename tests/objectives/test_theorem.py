"""The surrogate loss has the gradient of the divergence itself; the plausible ways of getting it wrong do not."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from slingstone.networks.gaussian import GaussianMixture, exact_divergence_gradient
from slingstone.objectives.diffusion import diffuse, x0_from
from slingstone.objectives.divergence import (
    Divergence,
    IntegralKL,
    PseudoHuber,
    ScoreNetworks,
    SquaredL2,
    divergence_gradient,
)

LEVEL = 2
FINE, COARSE = 12, 5
"""Quadrature orders: to compare with the truth, and to compare two forms on the same points."""
DISTANCES = [SquaredL2(), PseudoHuber(constant=0.3), PseudoHuber(constant=0.3, per="element")]


def exact(toy, distance) -> Tensor:
    parts = exact_divergence_gradient(toy.generator, toy.reference, toy.schedule, LEVEL, distance)
    return torch.cat([part.flatten() for part in parts])


def ours(toy, divergence: Divergence, order: int = FINE) -> Tensor:
    def gradient_at(x0: Tensor, eps: Tensor) -> Tensor:
        t = torch.full((len(x0),), LEVEL)
        return divergence_gradient(toy.networks, toy.schedule, x0, t, eps, divergence).gradient

    return toy.expected_gradient(gradient_at, order)


def relative_error_and_cosine(found: Tensor, wanted: Tensor) -> tuple[float, float]:
    return float((found - wanted).norm() / wanted.norm()), float(torch.cosine_similarity(found, wanted, 0))


def by_hand(
    toy, distance, order: int = FINE, *, space="eps", detach_distance=False, detach_brace=False, no_grad=False
) -> Tensor:
    """The loss of the paper written out once more, with switches for the mistakes."""

    def gradient_at(x0: Tensor, eps: Tensor) -> Tensor:
        t = torch.full((len(x0),), LEVEL)
        alpha, sigma = toy.schedule.at(t)
        leaf = x0.requires_grad_()
        x_t = diffuse(leaf, eps, alpha, sigma)
        with torch.set_grad_enabled(not no_grad):
            own, wanted = toy.assistant(x_t, t, {}), toy.reference(x_t, t, {})
        if space == "eps":
            y, v = wanted - own, own - eps
        else:
            denoised = [x0_from("eps", e, x_t, alpha, sigma) for e in (own, wanted)]
            if no_grad:
                denoised = [d.detach() for d in denoised]
            y, v = denoised[0] - denoised[1], leaf - denoised[0]
        u = distance.derivative(y)
        terms = (u.detach() if detach_distance else u) * (v.detach() if detach_brace else v)
        if not terms.requires_grad:
            return torch.zeros_like(x0)
        return torch.autograd.grad(terms.sum(), leaf)[0]

    return toy.expected_gradient(gradient_at, order)


@pytest.mark.parametrize("gradient", ["direct", "recomputed"])
@pytest.mark.parametrize("distance", DISTANCES, ids=str)
def test_the_full_flow_is_the_exact_gradient(toy, distance, gradient):
    error, cosine = relative_error_and_cosine(
        ours(toy, Divergence(distance=distance, gradient=gradient)), exact(toy, distance)
    )
    # What remains is the error of the quadrature: 3e-7 for squared L2, 3e-4 for Pseudo-Huber, which is no polynomial.
    assert error < 1e-3
    assert cosine > 0.99999


@pytest.mark.parametrize("distance", DISTANCES, ids=str)
def test_the_loss_written_out_by_hand_is_ours_when_no_mistake_is_made(toy, distance):
    # ground for the next test: its variants differ from this one in nothing but the mistake
    found, wanted = by_hand(toy, distance, COARSE), ours(toy, Divergence(distance=distance), COARSE)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("distance", DISTANCES[:2], ids=str)
@pytest.mark.parametrize(
    "mistake",
    [
        {"detach_distance": True},
        {"detach_brace": True},
        {"space": "x0", "no_grad": True},
    ],
    ids=str,
)
def test_a_detach_in_the_wrong_place_is_far_from_the_exact_gradient(toy, distance, mistake):
    error, cosine = relative_error_and_cosine(by_hand(toy, distance, **mistake), exact(toy, distance))
    assert error > 0.1
    assert cosine < 0.999


@pytest.mark.parametrize("distance", DISTANCES[:2], ids=str)
def test_detaching_both_factors_leaves_no_gradient_at_all(toy, distance):
    assert by_hand(toy, distance, COARSE, detach_distance=True, detach_brace=True).abs().max() == 0


def test_squared_l2_with_both_networks_under_no_grad_is_secretly_kl(toy):
    trap = by_hand(toy, SquaredL2(), COARSE, space="x0", no_grad=True)
    _, cosine = relative_error_and_cosine(trap, ours(toy, Divergence(distance=IntegralKL()), COARSE))
    assert cosine == pytest.approx(1, abs=1e-12)
    _, cosine = relative_error_and_cosine(ours(toy, Divergence(distance=SquaredL2()), COARSE), trap)
    assert cosine < 0.999


@pytest.mark.parametrize("gradient", ["direct", "recomputed"])
@pytest.mark.parametrize("distance", [SquaredL2(), PseudoHuber(0.1)])
def test_the_named_ablation_is_the_trap_of_networks_without_gradient(toy, distance, gradient):
    named = ours(toy, Divergence(distance=distance, flow="detach_networks", gradient=gradient), COARSE)
    _, cosine = relative_error_and_cosine(named, by_hand(toy, distance, COARSE, space="x0", no_grad=True))
    # The constant of Pseudo-Huber means another distance in each space.
    assert cosine > 0.9999
    if isinstance(distance, SquaredL2):
        assert cosine == pytest.approx(1, abs=1e-12)
        assert torch.allclose(named, 2 * ours(toy, Divergence(distance=IntegralKL()), COARSE), rtol=1e-12)


@pytest.mark.parametrize("gradient", ["direct", "recomputed"])
def test_networks_that_cut_the_graph_are_refused(toy, gradient):
    blind = torch.no_grad()
    networks = ScoreNetworks(
        *(blind(f) for f in (toy.networks.assistant, toy.networks.conditional, toy.networks.unconditional))
    )
    x0 = torch.zeros(3, 2, 1, 1, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="does not require grad"):
        divergence_gradient(
            networks, toy.schedule, x0, torch.full((3,), LEVEL), torch.randn_like(x0), Divergence(gradient=gradient)
        )


@pytest.mark.parametrize("distance", DISTANCES[:2], ids=str)
def test_the_biased_option_is_the_mistake_that_it_is_named_after(toy, distance):
    found = ours(toy, Divergence(distance=distance, flow="detach_distance"), COARSE)
    torch.testing.assert_close(found, by_hand(toy, distance, COARSE, detach_distance=True), rtol=1e-10, atol=1e-12)


def test_integral_kl_is_the_gradient_of_the_closed_form(toy):
    # One Gaussian against another: KL( N(m,C) || N(m_r,C_r) ) at level t, differentiated in the generator's parameters.
    # w(t) = 1 is w'(t) = 1 / sigma_t, as y = sigma_t (s_psi - s_ref).
    single = GaussianMixture(
        toy.reference.means[:1], toy.reference.factors[:1], torch.ones(1, dtype=torch.float64), toy.schedule
    )
    toy = replace(toy, reference=single.requires_grad_(False))
    alpha, sigma = toy.schedule.alpha[LEVEL], toy.schedule.sigma[LEVEL]
    noise = sigma**2 * torch.eye(2, dtype=torch.float64)

    def diffused(mean: Tensor, factor: Tensor) -> torch.distributions.MultivariateNormal:
        return torch.distributions.MultivariateNormal(alpha * mean, alpha**2 * factor @ factor.T + noise)

    own = diffused(toy.generator.mean, toy.generator.factor)
    kl = torch.distributions.kl_divergence(own, diffused(single.means[0], single.factors[0]))
    wanted = torch.cat([g.flatten() for g in torch.autograd.grad(kl, (toy.generator.mean, toy.generator.factor))])
    found = ours(toy, Divergence(distance=IntegralKL(), weighting="inverse_sigma"), COARSE)
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-10)  # the integrand is a polynomial: rounding only
