from __future__ import annotations

import pytest
import torch

from ldm.diffusion.schedules import Cosine, RectifiedFlow, VPLinear, log_snr, t_at_log_snr
from ldm.interfaces import NoiseSchedule

SCHEDULES = [RectifiedFlow(), Cosine(), VPLinear()]


@pytest.fixture(params=SCHEDULES, ids=lambda schedule: type(schedule).__name__)
def schedule(request: pytest.FixtureRequest) -> NoiseSchedule:
    return request.param


def test_starts_at_data_and_ends_at_noise(schedule: NoiseSchedule) -> None:
    ends = torch.tensor([0.0, 1.0])
    torch.testing.assert_close(schedule.alpha(ends), torch.tensor([1.0, 0.0]), atol=0.01, rtol=0)
    torch.testing.assert_close(schedule.sigma(ends), torch.tensor([0.0, 1.0]), atol=1e-4, rtol=0)
    assert schedule.alpha(ends)[1] >= 0  # never a negative picture, not even by rounding
    assert schedule.sigma(ends)[0] == 0


def test_alpha_falls_and_sigma_rises(schedule: NoiseSchedule) -> None:
    t = torch.linspace(0, 1, 1001)
    assert (schedule.alpha(t).diff() < 0).all()
    # where sigma is 1 within float32 it may stand still
    assert (schedule.sigma(t).diff() >= 0).all()
    assert (log_snr(schedule, t).diff() < 0).all()


@pytest.mark.parametrize("schedule", [Cosine(), VPLinear()], ids=["Cosine", "VPLinear"])
def test_variance_preserving(schedule: NoiseSchedule) -> None:
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    torch.testing.assert_close(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, torch.ones_like(t))


def test_vp_linear_is_the_continuous_ddpm() -> None:
    # Ho et al. 2020: alpha_bar_k = prod (1 - beta_i), beta from 1e-4 to 0.02 in 1000 steps
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    torch.testing.assert_close(VPLinear().alpha(t) ** 2, alpha_bar, atol=2e-3, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_precision_is_float32_or_better_whatever_comes_in(
    schedule: NoiseSchedule, dtype: torch.dtype
) -> None:
    t = torch.tensor([[0.25, 0.5]], dtype=dtype)
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    for value in (schedule.alpha(t), schedule.sigma(t), log_snr(schedule, t)):
        assert value.dtype == expected
        assert value.shape == t.shape


def test_float32_agrees_with_float64_near_the_data(schedule: NoiseSchedule) -> None:
    t = torch.tensor([1e-6, 1e-4, 1e-2, 0.5])
    torch.testing.assert_close(schedule.sigma(t), schedule.sigma(t.double()).float(), rtol=1e-5, atol=0)


def test_t_at_log_snr_inverts_log_snr(schedule: NoiseSchedule) -> None:
    t = torch.linspace(1e-3, 0.999, 50, dtype=torch.float64)
    torch.testing.assert_close(t_at_log_snr(schedule, log_snr(schedule, t)), t, atol=1e-10, rtol=0)


def test_t_at_log_snr_out_of_reach_gives_the_ends(schedule: NoiseSchedule) -> None:
    reached = t_at_log_snr(schedule, torch.tensor([1000.0, -1000.0]))
    torch.testing.assert_close(reached, torch.tensor([0.0, 1.0], dtype=torch.float64))


def test_vp_linear_refuses_impossible_rates() -> None:
    with pytest.raises(ValueError, match="beta_min"):
        VPLinear(beta_min=2.0, beta_max=1.0)
