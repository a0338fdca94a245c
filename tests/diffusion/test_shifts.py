from __future__ import annotations

import math

import pytest
import torch

from ldm.diffusion.diffusion import Diffusion
from ldm.diffusion.parameterizations import Epsilon, Flow
from ldm.diffusion.schedules import Cosine, RectifiedFlow, VPLinear, log_snr
from ldm.diffusion.shifts import DimensionShift, FixedShift, Shift, Shifted, TokenShift
from ldm.diffusion.tabulated import ScaledLinear
from ldm.diffusion.time_samplers import LogNormalSigma, Uniform
from ldm.diffusion.weightings import Unweighted
from ldm.diffusion.zero_terminal_snr import ZeroTerminalSNR
from ldm.interfaces import Conditioning, NoiseSchedule
from tests.diffusion.parts import COND, sample

T = torch.linspace(0, 1, 101, dtype=torch.float64)
FACTORS = [0.2, 1.0, 1.6487212707, 3.0, 8.0]


def fixed(factor: float, schedule: NoiseSchedule | None = None) -> Shifted:
    return Shifted(schedule=schedule or RectifiedFlow(), shift=FixedShift(factor=factor))


@pytest.mark.parametrize("factor", FACTORS)
def test_sigma_of_the_rectified_flow_is_the_published_time(factor: float) -> None:
    # Esser et al. 2024, eq. 23
    torch.testing.assert_close(fixed(factor).sigma(T), factor * T / (1 + (factor - 1) * T))


@pytest.mark.parametrize("factor", FACTORS)
def test_the_snr_of_the_rectified_flow_is_divided_by_the_square(factor: float) -> None:
    inner = T[1:-1]
    shifted, plain = log_snr(fixed(factor), inner), log_snr(RectifiedFlow(), inner)
    torch.testing.assert_close(shifted, plain - 2 * math.log(factor))


@pytest.mark.parametrize("schedule", [Cosine(), VPLinear(), ScaledLinear()], ids=lambda s: type(s).__name__)
def test_other_schedules_are_read_at_the_moved_time(schedule: NoiseSchedule) -> None:
    moved = 3 * T / (1 + 2 * T)
    shifted = fixed(3.0, schedule)
    torch.testing.assert_close(shifted.alpha(T), schedule.alpha(moved))
    torch.testing.assert_close(shifted.sigma(T), schedule.sigma(moved))
    torch.testing.assert_close(shifted.network_time(T), schedule.network_time(moved))


@pytest.mark.parametrize("factor", [*FACTORS, *(0.1 + 0.017 * n for n in range(50))])
def test_the_ends_stay_exactly_in_float32(factor: float) -> None:
    t = torch.cat([torch.zeros(9), torch.ones(9), 1 - torch.rand(99) * 1e-6])
    told = fixed(factor).network_time(t)
    assert (told[:9] == 0).all() and (told[9:18] == 1).all() and (told <= 1).all()


def test_two_shifts_are_one_of_their_product_which_is_why_they_are_not_nested() -> None:
    inner = fixed(2.0)
    moved = inner.network_time(T)
    torch.testing.assert_close(fixed(3.0).sigma(moved), fixed(6.0).sigma(T))
    with pytest.raises(ValueError, match="a shift is applied once: multiply the factors"):
        fixed(3.0, inner)


def test_token_shift_at_its_two_points() -> None:
    assert TokenShift()((16, 32, 32)) == pytest.approx(math.exp(0.5))
    assert TokenShift()((16, 128, 128)) == pytest.approx(math.exp(1.15))


def test_dimension_shift_counts_all_values() -> None:
    # Zheng et al. 2025: sqrt(m / n) with n = 4096; their DINOv2 latents of 16 x 16 tokens of 768 channels
    assert DimensionShift()((4, 32, 32)) == 1
    assert DimensionShift()((768, 16, 16)) == pytest.approx(math.sqrt(768 * 256 / 4096))


@pytest.mark.parametrize("shift", [TokenShift(), DimensionShift()], ids=lambda s: type(s).__name__)
def test_an_unresolved_shift_says_what_to_do(shift: Shift) -> None:
    schedule = Shifted(schedule=RectifiedFlow(), shift=shift)
    for f in (schedule.alpha, schedule.sigma, schedule.network_time):
        with pytest.raises(ValueError, match=rf"{type(shift).__name__} depends on .* ask for_latents"):
            f(T)
    resolved = schedule.for_latents((16, 64, 64))
    assert resolved == fixed(shift((16, 64, 64)))


def test_wrappers_hand_the_shape_on() -> None:
    shifted = Shifted(schedule=ScaledLinear(), shift=DimensionShift())
    resolved = ZeroTerminalSNR(schedule=shifted).for_latents((16, 64, 64))
    assert resolved == ZeroTerminalSNR(schedule=fixed(4.0, ScaledLinear()))
    # moving times and moving alpha down to 0 do not get in each other's way
    other = fixed(4.0, ZeroTerminalSNR(schedule=ScaledLinear()))
    torch.testing.assert_close(resolved.alpha(T), other.alpha(T))
    torch.testing.assert_close(resolved.sigma(T), other.sigma(T))


def flux() -> Diffusion:
    return Diffusion(
        schedule=Shifted(schedule=RectifiedFlow(), shift=DimensionShift(base_dim=15)),
        parameterization=Flow(),
        time_sampler=Uniform(),
        weighting=Unweighted(),
    )


def test_diffusion_resolves_the_shape_by_itself_and_once() -> None:
    """(4, 3, 5) latents are 60 values: a shift of 2."""
    x0, eps, t = sample()
    told: list[torch.Tensor] = []

    def network(x: torch.Tensor, t: torch.Tensor, cond: Conditioning) -> torch.Tensor:
        told.append(t)
        return torch.zeros_like(x)

    it = flux()
    resolved = it.for_latents((4, 3, 5))
    assert resolved.schedule == fixed(2.0)
    assert resolved.for_latents((4, 3, 5)) is resolved
    x_t = it.add_noise(x0, eps, t)
    torch.testing.assert_close(x_t, resolved.add_noise(x0, eps, t))
    for one in (it, resolved):
        one.predict(network, x_t, t, COND)
        one.loss(network, x0, COND, eps=eps, t=t)
    for time in told:
        torch.testing.assert_close(time, 2 * t / (1 + t))


def test_a_diffusion_that_does_not_depend_on_the_shape_stays_itself() -> None:
    it = Diffusion(schedule=Cosine(), parameterization=Flow(), time_sampler=Uniform(), weighting=Unweighted())
    assert it.for_latents((4, 8, 8)) is it


def test_a_law_in_sigma_needs_the_shape() -> None:
    it = Diffusion(
        schedule=flux().schedule,
        parameterization=Flow(),
        time_sampler=LogNormalSigma(),
        weighting=Unweighted(),
    )
    u = torch.tensor([0.5])
    with pytest.raises(ValueError, match="ask for_latents"):
        it.times(u, slots=range(1), num_slots=1)
    resolved = it.for_latents((4, 3, 5))
    t = resolved.times(u, slots=range(1), num_slots=1)
    torch.testing.assert_close(log_snr(resolved.schedule, t), torch.tensor([2.4]))


def test_ill_posed_pairs_are_found_under_an_unresolved_shift() -> None:
    with pytest.raises(ValueError, match="Epsilon with Shifted is ill-posed at t = 1"):
        Diffusion(
            schedule=Shifted(schedule=RectifiedFlow(), shift=TokenShift()),
            parameterization=Epsilon(),
            time_sampler=Uniform(),
            weighting=Unweighted(),
        )


def test_impossible_shifts_are_refused() -> None:
    for factor in (0.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="finite factor > 0"):
            FixedShift(factor=factor)
    with pytest.raises(ValueError, match="base_tokens=4096"):
        TokenShift(base_tokens=4096)
    with pytest.raises(ValueError, match="patch_size=0"):
        TokenShift(patch_size=0)
    with pytest.raises(ValueError, match="base_dim=0"):
        DimensionShift(base_dim=0)
