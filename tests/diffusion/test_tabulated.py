from __future__ import annotations

import numpy as np
import pytest
import torch

from ldm.diffusion.tabulated import DDPMLinear, ScaledLinear, Tabulated

INDEX = torch.arange(1000)
KNOTS = (INDEX.double() + 1) / 1000  # where the table's entries stand
every_table = pytest.mark.parametrize(
    "schedule", [DDPMLinear(), ScaledLinear()], ids=lambda s: type(s).__name__
)


def in_numpy(schedule: Tabulated) -> torch.Tensor:
    """alpha_bar as the first publications computed it, in float64."""
    if isinstance(schedule, DDPMLinear):
        betas = np.linspace(1e-4, 0.02, 1000)
    else:
        betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    return torch.from_numpy(np.cumprod(1 - betas))


@every_table
def test_the_table_is_hit_exactly(schedule: Tabulated) -> None:
    torch.testing.assert_close(schedule.alpha(KNOTS) ** 2, in_numpy(schedule), rtol=1e-12, atol=0)
    sigma_squared = 1 - in_numpy(schedule)
    torch.testing.assert_close(schedule.sigma(KNOTS) ** 2, sigma_squared, rtol=1e-11, atol=0)
    in_float32 = schedule.alpha(KNOTS.float()) ** 2  # a knot's time is rounded, its value only by so much
    torch.testing.assert_close(in_float32.double(), in_numpy(schedule), rtol=4e-6, atol=0)


@every_table
def test_networks_see_the_index(schedule: Tabulated) -> None:
    torch.testing.assert_close(
        1000 * schedule.network_time(KNOTS.float()), INDEX.float(), rtol=1e-6, atol=1e-4
    )
    before = schedule.network_time(torch.linspace(0, 1e-3, 5))
    torch.testing.assert_close(before, torch.zeros(5), rtol=0, atol=1e-9)


def test_indices_count_to_the_length_of_the_table() -> None:
    schedule = DDPMLinear(num_train_steps=250)
    t = torch.tensor([1 / 250, 0.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(1000 * schedule.network_time(t), torch.tensor([0, 124, 249]).double())


@every_table
def test_between_entries_the_rate_of_noise_is_constant(schedule: Tabulated) -> None:
    """From clean data to index 0 as well: there sigma^2 = 1 - (1 - beta_0)^(1000 t), strictly rising."""
    halves = schedule.alpha(KNOTS - 0.0005)
    neighbours = schedule.alpha(KNOTS - 0.001) * schedule.alpha(KNOTS)
    torch.testing.assert_close(halves, neighbours.sqrt(), rtol=1e-12, atol=0)
    t = torch.linspace(0, 1e-3, 101, dtype=torch.float64)
    first = 1 - (1 - float(schedule.betas()[0])) ** (1000 * t)
    torch.testing.assert_close(schedule.sigma(t) ** 2, first, rtol=1e-9, atol=1e-18)
    assert (schedule.sigma(t).diff() > 0).all() and (schedule.alpha(t).diff() < 0).all()


def test_impossible_tables_are_refused() -> None:
    with pytest.raises(ValueError, match=r"beta_start=0\.02, beta_end=0\.01"):
        DDPMLinear(beta_start=0.02, beta_end=0.01)
    with pytest.raises(ValueError, match="beta_end=1"):
        ScaledLinear(beta_end=1.0)
    with pytest.raises(ValueError, match="num_train_steps=1"):
        ScaledLinear(num_train_steps=1)
