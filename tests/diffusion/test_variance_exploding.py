from __future__ import annotations

import pytest
import torch

from ldm.diffusion.variance_exploding import VarianceExploding


@pytest.mark.parametrize("rho", [1.0, 3.0, 7.0])
def test_sigma_is_the_lowered_ramp(rho: float) -> None:
    schedule = VarianceExploding(sigma_min=0.002, sigma_max=80.0, rho=rho)
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    a, b = 0.002 ** (1 / rho), 80.002 ** (1 / rho)
    torch.testing.assert_close(schedule.sigma(t), (a + (b - a) * t) ** rho - a**rho, rtol=1e-9, atol=1e-15)


def test_equal_steps_are_nearly_the_sampling_steps_of_edm() -> None:
    """Karras et al. 2022, eq. 5: lowered by sigma_min = 0.002 and stretched by as little at the other end."""
    t = torch.linspace(1, 0, 18, dtype=torch.float64)
    karras = (80 ** (1 / 7) + (1 - t) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    ours = VarianceExploding().sigma(t)
    torch.testing.assert_close(ours, karras - 0.002, rtol=3e-5, atol=1e-12)


def test_the_network_is_told_edm_s_c_noise() -> None:
    schedule = VarianceExploding()
    t = torch.linspace(0.1, 1, 10, dtype=torch.float64)
    torch.testing.assert_close(schedule.network_time(t), schedule.sigma(t).log() / 4)
    below = schedule.network_time(torch.tensor([0.0, 1e-4]))  # sigma_min is the finest it knows
    torch.testing.assert_close(below, torch.full((2,), 0.002).log() / 4)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"sigma_min": 0.0}, r"sigma_min=0\.0"),
        ({"sigma_min": 2.0, "sigma_max": 1.0}, r"sigma_max=1\.0"),
        ({"rho": 0.0}, r"rho=0\.0"),
    ],
)
def test_impossible_ramps_are_refused(values: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        VarianceExploding(**values)
