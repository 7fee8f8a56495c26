"""Schedules and conversions, against their definitions."""

import pytest
import torch
from torch import Tensor

from slingstone.objectives.diffusion import NoiseSchedule, diffuse, eps_from, eps_to, x0_from

KINDS = ["eps", "x0", "v", "flow", "score"]


def scaled_linear_betas() -> Tensor:
    return torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2


def at_levels(schedule: NoiseSchedule) -> tuple[Tensor, ...]:
    """Return x0, eps, x_t and the two scales, at levels from nearly clean to nearly noise."""
    rng = torch.Generator().manual_seed(0)
    t = torch.tensor([20, 399, 625, 979])
    x0, eps = (torch.randn(4, 3, 5, 5, generator=rng) for _ in range(2))
    alpha, sigma = schedule.at(t)
    return x0, eps, diffuse(x0, eps, alpha, sigma), alpha, sigma


def schedules() -> list[NoiseSchedule]:
    flow = NoiseSchedule.from_flow_sigmas(torch.linspace(0.001, 1, 1000)[:-1])
    return [NoiseSchedule.from_betas(scaled_linear_betas()), flow]


def test_the_schedule_of_sdxl_has_the_published_scales():
    # spec of DMD2-SDXL-1step: a_399 = .65275, s_399 = .75757; SD1.5 (same betas) has s/a = 2.50 at 625
    alpha, sigma = NoiseSchedule.from_betas(scaled_linear_betas()).at(torch.tensor([399, 625, 979]))
    assert float(alpha[0]) == pytest.approx(0.65275, abs=5e-6)
    assert float(sigma[0]) == pytest.approx(0.75757, abs=5e-6)
    assert float(sigma[1] / alpha[1]) == pytest.approx(2.50, abs=5e-3)
    assert float(sigma[2] / alpha[2]) == pytest.approx(13, abs=0.5)


def test_betas_and_their_cumulative_products_are_one_schedule():
    betas = scaled_linear_betas()
    first, second = NoiseSchedule.from_betas(betas), NoiseSchedule.from_alphas_cumprod((1 - betas).cumprod(0))
    assert torch.equal(first.alpha, second.alpha)
    assert torch.equal(first.sigma, second.sigma)
    torch.testing.assert_close(first.alpha**2 + first.sigma**2, torch.ones(1000))
    assert len(first) == 1000


def test_the_flow_schedule_is_a_straight_line():
    schedule = NoiseSchedule.from_flow_sigmas(torch.tensor([0.25, 1.0]))
    assert schedule.alpha.tolist() == [0.75, 0.0]
    assert schedule.sigma.tolist() == [0.25, 1.0]


@pytest.mark.parametrize("table", [[0.5, 0.0], [1.0, 0.5], [0.5, float("nan")]])
def test_a_table_with_a_pure_end_is_refused(table):
    with pytest.raises(ValueError, match="alphas_cumprod spans"):
        NoiseSchedule.from_alphas_cumprod(torch.tensor(table))


def test_flow_sigmas_with_a_terminal_zero_are_refused():
    with pytest.raises(ValueError, match=r"sigmas spans \[0, 1\].*terminal zero"):
        NoiseSchedule.from_flow_sigmas(torch.tensor([1.0, 0.5, 0.0]))


@pytest.mark.parametrize("schedule", schedules(), ids=["vp", "flow"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_perfect_prediction_of_any_kind_gives_back_eps_and_x0(kind, schedule):
    x0, eps, x_t, alpha, sigma = at_levels(schedule)
    prediction = {
        "eps": eps,
        "x0": x0,
        "v": alpha * eps - sigma * x0,
        "flow": eps - x0,
        "score": -eps / sigma,
    }[kind]
    # fp32 times the amplification of the conversions that divide: s/a = 13 (vp) or 50 (flow), a/s = 50
    close = {"rtol": 0, "atol": 5e-5}
    torch.testing.assert_close(eps_from(kind, prediction, x_t, alpha, sigma), eps, **close)
    torch.testing.assert_close(x0_from(kind, prediction, x_t, alpha, sigma), x0, **close)
    torch.testing.assert_close(eps_to(kind, eps, x_t, alpha, sigma), prediction, rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize("schedule", schedules(), ids=["vp", "flow"])
@pytest.mark.parametrize("kind", KINDS)
def test_eps_survives_the_round_trip_through_every_kind(kind, schedule):
    _, _, x_t, alpha, sigma = at_levels(schedule)
    wrong = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(1))  # not the eps of x_t: any output will do
    there = eps_to(kind, wrong, x_t, alpha, sigma)
    torch.testing.assert_close(eps_from(kind, there, x_t, alpha, sigma), wrong, rtol=0, atol=5e-5)
    torch.testing.assert_close(
        x0_from(kind, there, x_t, alpha, sigma), x0_from("eps", wrong, x_t, alpha, sigma), rtol=1e-5, atol=5e-5
    )


def test_conversions_of_half_precision_are_done_in_fp32():
    schedule = NoiseSchedule.from_betas(scaled_linear_betas())
    _, eps, x_t, alpha, sigma = at_levels(schedule)
    half = eps.bfloat16()
    found = x0_from("eps", half, x_t, alpha, sigma)
    assert found.dtype == torch.float32
    assert torch.equal(found, x0_from("eps", half.float(), x_t, alpha, sigma))
    assert diffuse(half, half, alpha, sigma).dtype == torch.float32
