from __future__ import annotations

import pytest
import torch

from ldm.diffusion.schedules import ImprovedCosine, RectifiedFlow, VPLinear, log_snr, t_at_log_snr
from ldm.diffusion.variance_exploding import VarianceExploding
from ldm.interfaces import NoiseSchedule
from tests.diffusion.parts import ENDS_WITHOUT_PICTURE, SCHEDULES, SHAPE, VARIANCE_PRESERVING, every_schedule

MIDWAY = torch.linspace(
    0.0505, 0.9505, 19, dtype=torch.float64
)  # between the points of the tables of 1000 steps


@every_schedule
def test_starts_at_the_data(schedule: NoiseSchedule) -> None:
    for dtype in (torch.float32, torch.float64):
        start = torch.zeros(1, dtype=dtype)
        assert schedule.alpha(start) == 1
        assert schedule.sigma(start) == 0 and not schedule.sigma(start).signbit()
        assert log_snr(schedule, start) == torch.inf


@pytest.mark.parametrize("name", SCHEDULES)
def test_ends_at_noise(name: str) -> None:
    schedule = SCHEDULES[name]
    for shape in [(), (1,), (64,), (3, 7)]:  # vectorised kernels may round the last elements otherwise
        end = torch.ones(shape)
        alpha, sigma = schedule.alpha(end), schedule.sigma(end)
        if name == "VarianceExploding":
            assert (alpha == 1).all()
            torch.testing.assert_close(sigma, 80 * end, rtol=2e-6, atol=0)
            continue
        torch.testing.assert_close(sigma, end, rtol=0, atol=3e-3)
        if name in ENDS_WITHOUT_PICTURE:
            assert (alpha == 0).all() and (log_snr(schedule, end) == -torch.inf).all()
        else:
            assert (alpha > 0).all() and (alpha < 0.07).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@every_schedule
def test_alpha_falls_and_sigma_rises(schedule: NoiseSchedule, dtype: torch.dtype) -> None:
    t = torch.linspace(0, 1, 4003, dtype=dtype)
    # alpha of VarianceExploding stands still, and sigma of others trembles by a rounding where it is nearly 1
    assert (schedule.alpha(t).diff() <= 0).all()
    assert (schedule.sigma(t).diff() >= -torch.finfo(dtype).eps).all()
    assert (schedule.alpha(t) >= 0).all()
    assert (log_snr(schedule, t).diff() < 0).all()


@pytest.mark.parametrize("name", VARIANCE_PRESERVING)
def test_variance_preserving(name: str) -> None:
    t = torch.linspace(0, 1, 1013, dtype=torch.float64)
    variance = SCHEDULES[name].alpha(t) ** 2 + SCHEDULES[name].sigma(t) ** 2
    torch.testing.assert_close(variance, torch.ones_like(t), rtol=1e-12, atol=0)


@every_schedule
def test_derivatives_agree_with_finite_differences(schedule: NoiseSchedule) -> None:
    t = MIDWAY.clone().requires_grad_()
    h = 1e-6
    for f in (schedule.alpha, schedule.sigma, lambda t: log_snr(schedule, t)):
        value = f(t)
        slope = torch.zeros_like(t)
        if value.requires_grad:  # alpha of VarianceExploding is a constant
            (slope,) = torch.autograd.grad(value.sum(), t)
        numeric = (f(MIDWAY + h) - f(MIDWAY - h)) / (2 * h)
        torch.testing.assert_close(slope, numeric, rtol=1e-6, atol=1e-8)


@every_schedule
def test_t_at_log_snr_inverts_log_snr(schedule: NoiseSchedule) -> None:
    t = torch.linspace(1e-3, 0.999, 60, dtype=torch.float64).reshape(3, 20)
    torch.testing.assert_close(t_at_log_snr(schedule, log_snr(schedule, t)), t, rtol=0, atol=1e-12)


@every_schedule
def test_t_at_log_snr_out_of_reach_gives_the_ends(schedule: NoiseSchedule) -> None:
    reached = t_at_log_snr(schedule, torch.tensor([1000.0, -1000.0]))
    torch.testing.assert_close(reached, torch.tensor([0.0, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@every_schedule
def test_precision_is_float32_or_better_whatever_comes_in(
    schedule: NoiseSchedule, dtype: torch.dtype
) -> None:
    t = torch.tensor([[0.25, 0.5]], dtype=dtype)
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    for value in (schedule.alpha(t), schedule.sigma(t), log_snr(schedule, t)):
        assert value.dtype == expected
        assert value.shape == t.shape


@every_schedule
def test_autocast_changes_nothing(schedule: NoiseSchedule) -> None:
    t = torch.linspace(0, 1, 101)
    functions = (schedule.alpha, schedule.sigma, schedule.network_time, lambda t: log_snr(schedule, t))
    plain = [f(t) for f in functions]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = [f(t) for f in functions]
    for a, b in zip(plain, under, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@every_schedule
def test_float32_agrees_with_float64_near_the_data(schedule: NoiseSchedule) -> None:
    t = torch.tensor([1e-6, 1e-4, 1e-2, 0.5])
    torch.testing.assert_close(schedule.sigma(t), schedule.sigma(t.double()).float(), rtol=1e-5, atol=0)


@every_schedule
def test_network_time_rises_within_its_range(schedule: NoiseSchedule) -> None:
    told = schedule.network_time(torch.linspace(0, 1, 101))
    assert told.shape == (101,) and (told.diff() >= 0).all() and (told[5:].diff() > 0).all()
    low, high = (-1.5537, 1.0956) if isinstance(schedule, VarianceExploding) else (0.0, 1.0)
    assert low <= told[0] and told[-1] <= high


@every_schedule
def test_resolved_schedules_do_not_change_again(schedule: NoiseSchedule) -> None:
    assert schedule.for_latents(SHAPE) is schedule  # the very same: it is asked for in every step


def test_the_network_is_told_t_itself_unless_there_is_reason() -> None:
    t = torch.rand(5)
    assert RectifiedFlow().network_time(t) is t


def test_vp_linear_is_the_continuous_ddpm() -> None:
    # Ho et al. 2020: alpha_bar_k = prod (1 - beta_i), beta from 1e-4 to 0.02 in 1000 steps
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    torch.testing.assert_close(VPLinear().alpha(t) ** 2, alpha_bar, atol=2e-3, rtol=0)


def test_vp_linear_refuses_impossible_rates() -> None:
    with pytest.raises(ValueError, match="beta_min"):
        VPLinear(beta_min=2.0, beta_max=1.0)


def test_improved_cosine_refuses_no_offset() -> None:
    with pytest.raises(ValueError, match=r"offset=0\.0; without it, use Cosine"):
        ImprovedCosine(offset=0.0)
