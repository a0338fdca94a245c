from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ldm.diffusion import parameterizations
from ldm.diffusion.parameterizations import X0, Epsilon, V
from ldm.diffusion.schedules import VPLinear, log_snr
from ldm.diffusion.variance_exploding import VarianceExploding
from ldm.diffusion.weightings import EDM, P2, MinSNR, Sigmoid, SoftMinSNR, Unweighted
from ldm.interfaces import NoiseSchedule, Parameterization, Weighting
from tests.diffusion.parts import WEIGHTINGS, every_schedule

T = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
LOG_SNR = log_snr(VPLinear(), T)
SNR = torch.exp(LOG_SNR)


def x0_factor(parameterization: Parameterization, schedule: NoiseSchedule | None = None) -> Tensor:
    schedule = schedule or VPLinear()
    alpha, sigma = schedule.alpha(T), schedule.sigma(T)
    p, q = parameterization.target_coeffs(alpha, sigma)
    return (sigma / (alpha * q - sigma * p)) ** 2


def test_unweighted_is_one() -> None:
    assert (Unweighted()(LOG_SNR, x0_factor(Epsilon())) == 1).all()


# Published weights on the squared error of x0, eps and v, for variance-preserving schedules.
PUBLISHED = {
    # Hang et al. 2023, section 3.4
    "MinSNR": (MinSNR(gamma=5.0), [SNR.clamp(max=5), SNR.clamp(max=5) / SNR, SNR.clamp(max=5) / (SNR + 1)]),
    # the same with min(a, b) replaced by a b / (a + b)
    "SoftMinSNR": (
        SoftMinSNR(gamma=5.0),
        [5 * SNR / (SNR + 5), 5 / (SNR + 5), 5 * SNR / (SNR + 5) / (SNR + 1)],
    ),
    # Choi et al. 2022, on eps
    "P2": (P2(gamma=1.0, k=1.0), [SNR / (1 + SNR), 1 / (1 + SNR), SNR / (1 + SNR) ** 2]),
    "P2(0.5, 2)": (P2(gamma=0.5, k=2.0), [SNR * (2 + SNR) ** -0.5, (2 + SNR) ** -0.5, None]),
    # Kingma & Gao 2023, Hoogeboom et al. 2024, on eps
    "Sigmoid": (Sigmoid(bias=-1.0), [None, torch.sigmoid(-1 - LOG_SNR), None]),
}


@pytest.mark.parametrize("column", [0, 1, 2], ids=["X0", "Epsilon", "V"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_weights_are_the_published_ones(name: str, column: int) -> None:
    weighting, published = PUBLISHED[name]
    wanted = published[column]
    if wanted is None:
        wanted = (
            published[1] * [SNR, 1, SNR / (SNR + 1)][column]
        )  # |d_eps|^2 = SNR |d_x0|^2 = (1 + 1 / SNR) |d_v|^2
    weight = weighting(LOG_SNR, x0_factor([X0(), Epsilon(), V()][column]))
    torch.testing.assert_close(weight, wanted)


@pytest.mark.parametrize("d", [0.5, 1.3])
def test_soft_min_snr_is_the_published_preconditioned_form(d: float) -> None:
    """Crowson et al. 2024 train EDM's network output with (sigma d)^2 / (sigma^2 + d^2)^2; here gamma = 1 / d^2."""
    sigma = VarianceExploding().sigma(T)
    factor = x0_factor(parameterizations.EDM(sigma_data=d), VarianceExploding())
    weight = SoftMinSNR(gamma=d**-2)(log_snr(VarianceExploding(), T), factor)
    torch.testing.assert_close(weight, (sigma * d) ** 2 / (sigma**2 + d**2) ** 2)


def test_edm_is_the_published_weight() -> None:
    """Karras et al. 2022, table 1: lambda(sigma) on the squared x0 error, for alpha = 1."""
    sigma, d = VarianceExploding().sigma(T), 0.5
    weight = EDM(sigma_data=d)(log_snr(VarianceExploding(), T), torch.ones_like(T))
    torch.testing.assert_close(weight, (sigma**2 + d**2) / (sigma * d) ** 2)


@every_schedule
def test_edm_weight_undoes_edm_preconditioning_along_every_schedule(schedule: NoiseSchedule) -> None:
    factor = x0_factor(parameterizations.EDM(sigma_data=0.7), schedule)
    weight = EDM(sigma_data=0.7)(log_snr(schedule, T), factor)
    torch.testing.assert_close(weight, torch.ones_like(T))


def test_sigmoid_and_soft_min_snr_are_the_same_family() -> None:
    one = torch.ones_like(T)
    torch.testing.assert_close(Sigmoid(bias=1.5)(LOG_SNR, one), SoftMinSNR(gamma=math.exp(1.5))(LOG_SNR, one))


@pytest.mark.parametrize("weighting", WEIGHTINGS.values(), ids=WEIGHTINGS)
def test_weights_are_positive_finite_and_float32_where_float32_times_reach(weighting: Weighting) -> None:
    level = torch.linspace(-34, 34, 201)  # the rectified flow at 2^-24 from either end
    weight = weighting(level, torch.ones_like(level))
    assert weight.dtype == torch.float32 and weight.isfinite().all() and (weight > 0).all()
    end = weighting(torch.tensor([-torch.inf]), torch.ones(1))  # pure noise, where some schedules end
    assert end.isfinite().all() and (end >= 0).all()


@pytest.mark.parametrize(
    ("weighting", "values", "named"),
    [
        (MinSNR, {"gamma": 0.0}, "gamma=0"),
        (SoftMinSNR, {"gamma": -1.0}, "gamma=-1"),
        (P2, {"k": 0.0}, "k=0"),
        (P2, {"gamma": -0.5}, "gamma=-0.5"),
        (EDM, {"sigma_data": 0.0}, "sigma_data=0"),
    ],
)
def test_impossible_weights_are_refused(weighting: type, values: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        weighting(**values)
