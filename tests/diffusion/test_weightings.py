from __future__ import annotations

import pytest
import torch

from ldm.diffusion.parameterizations import X0, Epsilon, V
from ldm.diffusion.schedules import VPLinear, log_snr
from ldm.diffusion.weightings import MinSNR, Unweighted
from ldm.interfaces import Parameterization

T = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
SNR = torch.exp(log_snr(VPLinear(), T))


def x0_factor(parameterization: Parameterization) -> torch.Tensor:
    alpha, sigma = VPLinear().alpha(T), VPLinear().sigma(T)
    p, q = parameterization.target_coeffs(alpha, sigma)
    return (sigma / (alpha * q - sigma * p)) ** 2


def test_unweighted_is_one() -> None:
    assert (Unweighted()(SNR.log(), x0_factor(Epsilon())) == 1).all()


@pytest.mark.parametrize(
    ("parameterization", "published"),
    [  # Hang et al. 2023, section 3.4
        (X0(), SNR.clamp(max=5)),
        (Epsilon(), SNR.clamp(max=5) / SNR),
        (V(), SNR.clamp(max=5) / (SNR + 1)),
    ],
    ids=["X0", "Epsilon", "V"],
)
def test_min_snr_is_the_published_weight(parameterization: Parameterization, published: torch.Tensor) -> None:
    torch.testing.assert_close(MinSNR(gamma=5.0)(SNR.log(), x0_factor(parameterization)), published)


def test_min_snr_refuses_a_gamma_of_zero() -> None:
    with pytest.raises(ValueError, match="gamma"):
        MinSNR(gamma=0.0)
