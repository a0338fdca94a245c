from __future__ import annotations

import pytest
import torch

from ldm.diffusion.parameterizations import EDM, Epsilon, Flow, V, solve
from ldm.diffusion.schedules import Cosine
from ldm.diffusion.variance_exploding import VarianceExploding
from ldm.interfaces import NoiseSchedule, Parameterization
from tests.diffusion.parts import every_parameterization, every_schedule

T = torch.linspace(0.02, 0.98, 33, dtype=torch.float64).reshape(-1, 1)


def normal(seed: int) -> torch.Tensor:
    return torch.randn(2, 33, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@every_parameterization
@every_schedule
def test_target_and_x_t_give_back_x0_and_eps(
    schedule: NoiseSchedule, parameterization: Parameterization
) -> None:
    x0, eps = normal(0)
    alpha, sigma = schedule.alpha(T), schedule.sigma(T)
    p, q = parameterization.target_coeffs(alpha, sigma)
    answer = solve(alpha * x0 + sigma * eps, p * x0 + q * eps, alpha, sigma, p, q)
    torch.testing.assert_close(answer.x0, x0, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(answer.eps, eps, rtol=1e-7, atol=1e-9)


@every_parameterization
@every_schedule
def test_any_output_agrees_with_x_t(schedule: NoiseSchedule, parameterization: Parameterization) -> None:
    x_t, output = normal(1)
    alpha, sigma = schedule.alpha(T), schedule.sigma(T)
    answer = solve(x_t, output, alpha, sigma, *parameterization.target_coeffs(alpha, sigma))
    torch.testing.assert_close(alpha * answer.x0 + sigma * answer.eps, x_t)


@every_parameterization
@every_schedule
def test_x0_factor_is_what_an_error_of_the_output_becomes(
    schedule: NoiseSchedule, parameterization: Parameterization
) -> None:
    x_t, output = normal(2)
    alpha, sigma = schedule.alpha(T), schedule.sigma(T)
    p, q = parameterization.target_coeffs(alpha, sigma)
    one, other = (solve(x_t, out, alpha, sigma, p, q).x0 for out in (output, output + 0.1))
    factor = (sigma / (alpha * q - sigma * p)).square()
    torch.testing.assert_close((one - other).square(), (0.01 * factor).expand(-1, 7), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("parameterization", [V(), Flow(), EDM()], ids=lambda p: type(p).__name__)
@every_schedule
def test_v_flow_and_edm_are_well_posed_at_both_ends(
    schedule: NoiseSchedule, parameterization: Parameterization
) -> None:
    t = torch.tensor([0.0, 1.0])
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    p, q = parameterization.target_coeffs(alpha, sigma)
    assert ((alpha * q - sigma * p).abs() > 0.4).all()


@every_parameterization
def test_only_edm_scales_the_input(parameterization: Parameterization) -> None:
    alpha, sigma = torch.rand(2, 9) + 0.1
    scale = parameterization.input_scale(alpha, sigma)
    assert bool((scale == 1).all()) is not isinstance(parameterization, EDM)


def test_epsilon_says_nothing_of_x0_in_pure_noise() -> None:
    p, q = Epsilon().target_coeffs(torch.zeros(1), torch.ones(1))
    assert 0 * q - 1 * p == 0


def test_v_is_the_velocity_of_the_cosine_path() -> None:
    t = torch.linspace(0, 1, 11, dtype=torch.float64, requires_grad=True)
    schedule = Cosine()
    (d_alpha,) = torch.autograd.grad(schedule.alpha(t).sum(), t)
    (d_sigma,) = torch.autograd.grad(schedule.sigma(t).sum(), t)
    p, q = V().target_coeffs(schedule.alpha(t), schedule.sigma(t))
    torch.testing.assert_close(torch.stack([d_alpha, d_sigma]), 0.5 * torch.pi * torch.stack([p, q]))


def test_flow_is_the_velocity_of_the_rectified_flow() -> None:
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    p, q = Flow().target_coeffs(1 - t, t)
    assert (p == -1).all() and (q == 1).all()


@pytest.mark.parametrize("d", [0.5, 1.0, 2.3])
def test_edm_is_the_published_preconditioning(d: float) -> None:
    """Karras et al. 2022, table 1: D(x; sigma) = c_skip x + c_out F(c_in x), for alpha = 1."""
    sigma = VarianceExploding().sigma(T)
    c_skip = d**2 / (sigma**2 + d**2)
    c_out = sigma * d / (sigma**2 + d**2).sqrt()
    c_in = 1 / (sigma**2 + d**2).sqrt()
    edm, alpha = EDM(sigma_data=d), torch.ones_like(sigma)
    torch.testing.assert_close(edm.input_scale(alpha, sigma), c_in)
    x_t, output = normal(3)
    p, q = edm.target_coeffs(alpha, sigma)
    x0 = solve(x_t, output, alpha, sigma, p, q).x0
    torch.testing.assert_close(x0, c_skip * x_t + c_out * output)
    # and what F is trained on: (x0 - c_skip x_t) / c_out
    x0, eps = normal(4)
    torch.testing.assert_close(p * x0 + q * eps, (x0 - c_skip * (x0 + sigma * eps)) / c_out)


@every_schedule
def test_edm_has_input_and_target_of_variance_one(schedule: NoiseSchedule) -> None:
    """For data of spread sigma_data; and, of all targets of variance one, the least amplified into x0."""
    d, (alpha, sigma) = 0.7, (schedule.alpha(T), schedule.sigma(T))
    edm = EDM(sigma_data=d)
    p, q = edm.target_coeffs(alpha, sigma)
    scale = edm.input_scale(alpha, sigma)
    one = torch.ones_like(T)
    torch.testing.assert_close(scale**2 * (alpha**2 * d**2 + sigma**2), one)
    torch.testing.assert_close(p**2 * d**2 + q**2, one)
    factor = (sigma / (alpha * q - sigma * p)).square()
    for angle in torch.linspace(0, torch.pi, 25, dtype=torch.float64):
        other_p, other_q = torch.cos(angle) / d, torch.sin(angle)  # another target of variance one
        assert (factor <= (sigma / (alpha * other_q - sigma * other_p)).square() * (1 + 1e-9)).all()


def test_edm_refuses_data_without_spread() -> None:
    with pytest.raises(ValueError, match=r"sigma_data=0\.0"):
        EDM(sigma_data=0.0)
