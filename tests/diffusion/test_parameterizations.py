from __future__ import annotations

import pytest
import torch

from ldm.diffusion.parameterizations import X0, Epsilon, Flow, V, solve
from ldm.diffusion.schedules import Cosine, RectifiedFlow, VPLinear
from ldm.interfaces import NoiseSchedule, Parameterization

SCHEDULES = [RectifiedFlow(), Cosine(), VPLinear()]
PARAMETERIZATIONS = [Epsilon(), X0(), V(), Flow()]


def name(part: object) -> str:
    return type(part).__name__


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS, ids=name)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_target_and_x_t_give_back_x0_and_eps(
    schedule: NoiseSchedule, parameterization: Parameterization
) -> None:
    generator = torch.Generator().manual_seed(0)
    t = torch.linspace(0.02, 0.98, 33, dtype=torch.float64).reshape(-1, 1)
    x0, eps = torch.randn(2, 33, 7, generator=generator, dtype=torch.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    p, q = parameterization.target_coeffs(alpha, sigma)
    answer = solve(alpha * x0 + sigma * eps, p * x0 + q * eps, alpha, sigma, p, q)
    torch.testing.assert_close(answer.x0, x0)
    torch.testing.assert_close(answer.eps, eps)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS, ids=name)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_any_output_agrees_with_x_t(schedule: NoiseSchedule, parameterization: Parameterization) -> None:
    generator = torch.Generator().manual_seed(1)
    t = torch.linspace(0.02, 0.98, 33, dtype=torch.float64).reshape(-1, 1)
    x_t, output = torch.randn(2, 33, 7, generator=generator, dtype=torch.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    answer = solve(x_t, output, alpha, sigma, *parameterization.target_coeffs(alpha, sigma))
    torch.testing.assert_close(alpha * answer.x0 + sigma * answer.eps, x_t)


@pytest.mark.parametrize("parameterization", [V(), Flow()], ids=name)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_v_and_flow_are_well_posed_at_both_ends(
    schedule: NoiseSchedule, parameterization: Parameterization
) -> None:
    t = torch.tensor([0.0, 1.0])
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    p, q = parameterization.target_coeffs(alpha, sigma)
    assert ((alpha * q - sigma * p).abs() > 0.4).all()


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
