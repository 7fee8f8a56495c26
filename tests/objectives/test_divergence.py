"""Identities between the forms of the divergence, and what it must leave alone."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from slingstone.objectives.diffusion import diffuse, x0_from
from slingstone.objectives.divergence import (
    Divergence,
    Guidance,
    IntegralKL,
    PseudoHuber,
    ScoreNetworks,
    SquaredL2,
    divergence_gradient,
)

DISTANCES = [SquaredL2(), PseudoHuber(constant=0.2), PseudoHuber(constant=0.2, per="element"), IntegralKL()]
EXACT = {"rtol": 1e-10, "atol": 1e-12}


class Net(nn.Module):
    """A small network that is nobody's score: the identities hold for any."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)
        self.double()

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x_t) + 0.1 * t.view(-1, 1, 1, 1)))


@pytest.fixture
def networks() -> ScoreNetworks:
    return ScoreNetworks(*(Net(seed).requires_grad_(False) for seed in range(3)))


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    shape = (5, 3, 4, 4)
    x0, eps = (torch.randn(shape, generator=rng, dtype=torch.float64) for _ in range(2))
    return x0, torch.tensor([0, 1, 2, 3, 1]), eps


@pytest.mark.parametrize("weighting", ["one", "sigma_over_alpha", "inverse_sigma"])
@pytest.mark.parametrize("flow", ["full", "detach_distance"])
@pytest.mark.parametrize("kind", ["inner", "outer"])
@pytest.mark.parametrize("distance", DISTANCES, ids=str)
def test_the_recomputed_gradient_is_the_direct_one(toy, networks, batch, distance, kind, flow, weighting):
    direct = Divergence(distance, Guidance(kind, 1.5), weighting, flow, "direct")
    first = divergence_gradient(networks, toy.schedule, *batch, direct)
    second = divergence_gradient(networks, toy.schedule, *batch, replace(direct, gradient="recomputed"))
    torch.testing.assert_close(second.gradient, first.gradient, **EXACT)
    torch.testing.assert_close(second.loss, first.loss, **EXACT)


@pytest.mark.parametrize("gradient", ["direct", "recomputed"])
@pytest.mark.parametrize("flow", ["full", "detach_distance", "detach_networks"])
@pytest.mark.parametrize("kind", ["inner", "outer"])
def test_one_pass_for_both_conditions_gives_what_two_give(toy, networks, batch, kind, flow, gradient):
    calls: Counter[str] = Counter()

    def joint(x_t: Tensor, t: Tensor) -> Tensor:
        calls["joint"] += 1
        return torch.cat([networks.conditional(x_t, t), networks.unconditional(x_t, t)])

    divergence = Divergence(PseudoHuber(constant=0.2), Guidance(kind, 1.5), "one", flow, gradient)
    expected = divergence_gradient(networks, toy.schedule, *batch, divergence)
    found = divergence_gradient(replace(networks, joint=joint), toy.schedule, *batch, divergence)
    torch.testing.assert_close(found, expected, **EXACT)
    # With outer guidance one of the two is differentiated and the other is not: they stay apart.
    together = kind == "inner" or flow != "full"
    again = gradient == "recomputed" and flow == "full"
    assert calls["joint"] == (together + again if together else 0)


@pytest.mark.parametrize("distance", DISTANCES, ids=str)
def test_the_gradient_is_that_of_the_loss_by_finite_differences(toy, networks, batch, distance):
    # KL's loss is a surrogate with the networks fixed, so its values cannot be differenced; the closed form covers it.
    if isinstance(distance, IntegralKL):
        return
    x0, t, eps = batch
    divergence = Divergence(distance, Guidance("inner", 1.5), "sigma_over_alpha")
    found = divergence_gradient(networks, toy.schedule, x0, t, eps, divergence)
    direction = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    step = 1e-5
    up, down = (
        divergence_gradient(networks, toy.schedule, x0 + sign * step * direction, t, eps, divergence).loss
        for sign in (1, -1)
    )
    slope = (found.gradient * direction).flatten(1).sum(1)
    torch.testing.assert_close((up - down) / (2 * step), slope, rtol=1e-6, atol=1e-8)  # central: error O(step^2)


def test_squared_l2_is_sid_with_alpha_one(toy, networks, batch):
    # SiD, arXiv:2404.04057, with alpha = 1: (f_ref - f_psi)^T (f_psi - x0), f the denoised sample.
    x0, t, eps = batch
    alpha, sigma = toy.schedule.at(t)
    leaf = x0.clone().requires_grad_()
    x_t = diffuse(leaf, eps, alpha, sigma)
    own, wanted = (x0_from("eps", net(x_t, t), x_t, alpha, sigma) for net in (networks.assistant, networks.conditional))
    sid = ((wanted - own) * (own - leaf)).flatten(1).sum(1)
    ours = divergence_gradient(networks, toy.schedule, x0, t, eps, Divergence(SquaredL2()))
    # (sigma/alpha)^2 from x0 to eps space, 2 from d' = 2 y
    ratio = 2 * (alpha / sigma).square()
    torch.testing.assert_close(ours.loss, ratio.flatten() * sid, **EXACT)
    torch.testing.assert_close(ours.gradient, ratio * torch.autograd.grad(sid.sum(), leaf)[0], **EXACT)


@pytest.mark.parametrize("weighting", ["one", "sigma_over_alpha", "inverse_sigma"])
def test_inner_and_outer_guidance_are_one_under_kl(toy, networks, batch, weighting):
    inner, outer = (
        divergence_gradient(
            networks, toy.schedule, *batch, Divergence(IntegralKL(), Guidance(kind, 7.5), weighting)
        ).gradient
        for kind in ("inner", "outer")
    )
    torch.testing.assert_close(inner, outer, **EXACT)


def test_inner_and_outer_guidance_are_two_algorithms_under_pseudo_huber(toy, networks, batch):
    inner, outer = (
        divergence_gradient(networks, toy.schedule, *batch, Divergence(guidance=Guidance(kind, 7.5))).gradient
        for kind in ("inner", "outer")
    )
    assert torch.cosine_similarity(inner.flatten(), outer.flatten(), 0) < 0.99


def test_outer_guidance_adds_the_classifier_gradient(toy, networks, batch):
    # d L_cfg / d x0 = alpha_cfg w'(t) alpha_t { e_ref(x_t|c) - e_ref(x_t|null) }
    x0, t, eps = batch
    alpha, sigma = toy.schedule.at(t)
    x_t = diffuse(x0, eps, alpha, sigma)
    pull = networks.conditional(x_t, t) - networks.unconditional(x_t, t)
    plain, guided = (
        divergence_gradient(
            networks, toy.schedule, *batch, Divergence(guidance=Guidance("outer", scale), weighting="sigma_over_alpha")
        ).gradient
        for scale in (0.0, 4.5)
    )
    torch.testing.assert_close(guided - plain, 4.5 * (sigma / alpha) * alpha * pull, **EXACT)


@pytest.mark.parametrize("kind", ["inner", "outer"])
def test_inner_guidance_of_scale_s_is_a_reference_of_guidance_one_plus_s(toy, networks, batch, kind):
    guided = ScoreNetworks(
        networks.assistant,
        lambda x, t: networks.unconditional(x, t) + 3.5 * (networks.conditional(x, t) - networks.unconditional(x, t)),
        networks.unconditional,
    )
    wanted = divergence_gradient(guided, toy.schedule, *batch, Divergence()).gradient
    found = divergence_gradient(networks, toy.schedule, *batch, Divergence(guidance=Guidance(kind, 2.5))).gradient
    assert torch.allclose(found, wanted, **EXACT) == (kind == "inner")


@pytest.mark.parametrize("per", ["sample", "element"])
def test_x0_form_is_sigma_over_alpha_times_eps_form_when_c_scales_along(toy, networks, batch, per):
    x0, t, eps = batch
    alpha, sigma = toy.schedule.at(t)
    scale = sigma / alpha
    leaf = x0.clone().requires_grad_()
    x_t = diffuse(leaf, eps, alpha, sigma)
    own, wanted = (x0_from("eps", net(x_t, t), x_t, alpha, sigma) for net in (networks.assistant, networks.conditional))
    y = own - wanted
    size = y.square().sum((1, 2, 3), keepdim=True) if per == "sample" else y.square()
    c = 0.2 * scale * (48**0.5 if per == "sample" else 1)
    form = (y / (size + c**2).sqrt() * (leaf - own)).flatten(1).sum(1)
    ours = divergence_gradient(
        networks, toy.schedule, x0, t, eps, Divergence(PseudoHuber(0.2, per), weighting="sigma_over_alpha")
    )
    torch.testing.assert_close(ours.loss, form, **EXACT)
    torch.testing.assert_close(ours.gradient, torch.autograd.grad(form.sum(), leaf)[0], **EXACT)


@pytest.mark.parametrize("distance", DISTANCES[:3], ids=str)
def test_the_derivative_of_a_distance_is_the_derivative_of_its_value(distance):
    y = torch.randn(4, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (gradient,) = torch.autograd.grad(distance.value(y).sum(), y)
    torch.testing.assert_close(distance.derivative(y), gradient, **EXACT)


def test_pseudo_huber_is_l2_near_zero_and_the_norm_far_away():
    direction = torch.full((1, 3, 4, 4), 48**-0.5, dtype=torch.float64)
    distance = PseudoHuber(constant=0.1)
    c = 0.1 * 48**0.5
    near, far = (distance.value(size * direction) for size in (1e-3 * c, 1e4 * c))
    assert float(near) == pytest.approx((1e-3 * c) ** 2 / (2 * c), rel=1e-6)  # next term is (y/c)^2 / 4 smaller
    assert float(far) == pytest.approx(1e4 * c - c, rel=1e-8)


def test_a_constant_that_would_divide_zero_by_zero_is_refused():
    with pytest.raises(ValueError, match=r"constant is 0.0, must be positive"):
        PseudoHuber(constant=0.0)


@pytest.mark.parametrize("gradient", ["direct", "recomputed"])
@pytest.mark.parametrize("distance", DISTANCES, ids=str)
def test_an_assistant_that_equals_the_reference_gives_a_zero_finite_gradient(toy, networks, batch, distance, gradient):
    equal = replace(networks, assistant=networks.conditional)
    found = divergence_gradient(equal, toy.schedule, *batch, Divergence(distance, gradient=gradient))
    assert float(found.y_norm.abs().max()) == 0
    assert float(found.distance.abs().max()) == 0
    # y = 0 makes u = 0, but d'(y) still has a slope there: it multiplies v and the difference of two equal Jacobians
    assert found.gradient.isfinite().all()
    assert float(found.gradient.abs().max()) < 1e-12


@pytest.mark.parametrize("gradient", ["direct", "recomputed"])
def test_no_weight_of_any_network_receives_a_gradient(toy, batch, gradient):
    nets = [Net(seed) for seed in range(3)]
    x0 = batch[0].requires_grad_()
    divergence = Divergence(guidance=Guidance("inner", 2.0), gradient=gradient)
    found = divergence_gradient(ScoreNetworks(*nets), toy.schedule, x0, *batch[1:], divergence)
    assert all(parameter.grad is None for net in nets for parameter in net.parameters())
    assert x0.grad is None
    assert not any(tensor.requires_grad for tensor in (found.loss, found.gradient, found.distance, found.y_norm))


@pytest.mark.parametrize(
    ("divergence", "calls"),
    [
        (Divergence(), (1, 1, 0)),
        (Divergence(guidance=Guidance("inner", 1.0)), (1, 1, 1)),
        (Divergence(gradient="recomputed"), (2, 2, 0)),
        (Divergence(guidance=Guidance("inner", 1.0), gradient="recomputed"), (2, 2, 2)),
        (Divergence(guidance=Guidance("outer", 1.0), gradient="recomputed"), (2, 2, 1)),
        (Divergence(flow="detach_distance", gradient="recomputed"), (2, 1, 0)),
        (Divergence(IntegralKL(), Guidance("inner", 1.0), gradient="recomputed"), (1, 1, 1)),
    ],
    ids=str,
)
def test_no_network_runs_more_often_than_its_gradient_needs(toy, networks, batch, divergence, calls):
    count = Counter()

    def counted(name: str, net: nn.Module):
        def call(x_t: Tensor, t: Tensor) -> Tensor:
            count[name] += 1
            return net(x_t, t)

        return call

    names = ("assistant", "conditional", "unconditional")
    watched = ScoreNetworks(*(counted(name, getattr(networks, name)) for name in names))
    divergence_gradient(watched, toy.schedule, *batch, divergence)
    assert tuple(count[name] for name in names) == calls


def test_recomputing_holds_one_graph_at_a_time(toy, batch):
    alive, most = [0], [0]

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor) -> Tensor:
            alive[0] += 1
            most[0] = max(most[0], alive[0])
            return x.clone()

        @staticmethod
        def backward(ctx, cotangent: Tensor) -> Tensor:
            alive[0] -= 1
            return cotangent

    def watched(seed: int):
        net = Net(seed).requires_grad_(False)
        return lambda x_t, t: net(Watched.apply(x_t) if torch.is_grad_enabled() else x_t, t)

    networks = ScoreNetworks(*(watched(seed) for seed in range(3)))
    for gradient, graphs in (("direct", 3), ("recomputed", 1)):
        most[0] = 0
        divergence = Divergence(guidance=Guidance("inner", 1.0), gradient=gradient)
        divergence_gradient(networks, toy.schedule, *batch, divergence)
        assert (alive[0], most[0]) == (0, graphs)


@pytest.mark.parametrize("gradient", ["direct", "recomputed"])
def test_a_sample_that_is_not_finite_leaves_the_others_alone(toy, networks, batch, gradient):
    x0, t, eps = batch
    divergence = Divergence(guidance=Guidance("inner", 1.0), gradient=gradient)
    clean = divergence_gradient(networks, toy.schedule, x0, t, eps, divergence)
    broken = x0.clone()
    broken[2, 0, 0, 0] = torch.nan
    found = divergence_gradient(networks, toy.schedule, broken, t, eps, divergence)
    others = torch.tensor([0, 1, 3, 4])
    torch.testing.assert_close(found.gradient[others], clean.gradient[others], **EXACT)
    assert not found.loss[2].isfinite()


def test_half_precision_outputs_are_widened_before_they_are_subtracted(toy, batch):
    # 1 and 1 + 2^-7 are neighbours in bf16; their difference times 3 would be rounded there.
    x0, t, eps = (part.float() if part.is_floating_point() else part for part in batch)
    schedule = replace(toy.schedule, alpha=toy.schedule.alpha.float(), sigma=toy.schedule.sigma.float())

    def flat(value: float):
        return lambda x_t, t: (0 * x_t + value).bfloat16()

    networks = ScoreNetworks(flat(1.0), flat(1.0 + 2**-7), flat(1.0))
    found = divergence_gradient(networks, schedule, x0, t, eps, Divergence(guidance=Guidance("inner", 2.0**-7)))
    wanted = (2**-7 + 2**-14) * 48**0.5
    torch.testing.assert_close(found.y_norm, torch.full((5,), wanted), rtol=1e-6, atol=0)
    assert found.gradient.dtype == torch.float32
