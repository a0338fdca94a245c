"""Stochastic samplers reach the law of the data: mean and covariance, without drawing a single number."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ldm.diffusion.schedules import Cosine, RectifiedFlow, VPLinear
from ldm.diffusion.tabulated import ScaledLinear
from ldm.diffusion.variance_exploding import VarianceExploding
from ldm.interfaces import NoiseSchedule, Prediction, Sampler
from ldm.sampling.ancestral import EulerAncestral
from ldm.sampling.dpm_solver import DPMpp2MSDE
from ldm.sampling.grids import Quadratic
from ldm.sampling.samplers import DDIM, DDPM
from tests.sampling.oracles import Plane

SCHEDULES = [RectifiedFlow(), Cosine(), VPLinear(), VarianceExploding(), ScaledLinear()]
# with the order at which the covariance converges
SAMPLERS: list[tuple[Sampler, int]] = [
    (DDPM(), 1),
    (DDPM(large_variance=1.0), 1),
    (DDIM(eta=0.0), 1),
    (DDIM(eta=0.5), 1),
    (DDIM(eta=1.0), 1),
    (EulerAncestral(), 1),
    (DPMpp2MSDE(eta=0.5), 2),
    (DPMpp2MSDE(eta=1.0), 2),
]


def law_at_the_end(sampler: Sampler, plane: Plane, times: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (2,) and covariance (2, 2) of what the sampler makes from x_t of times[0], exactly.

    For normal data the denoiser is affine, and so is the whole walk, in the start and in each step's noise. A batch of
    unit vectors reads off its matrix: row 0 is all zero, each other row has a single 1, in one channel of the start
    or of one step's noise.
    """
    num_steps = len(times) - 1
    num_rows = 1 + 2 * (1 + num_steps)

    def unit_vectors(place: int) -> Tensor:
        rows = torch.zeros(num_rows, 2, 1, 1, dtype=torch.float64)
        rows[1 + 2 * place, 0] = rows[2 + 2 * place, 1] = 1
        return rows

    start = unit_vectors(0)
    out = sampler(plane, plane.schedule, start, times, noise=lambda step: unit_vectors(1 + step))[..., 0, 0]
    columns = (out[1:] - out[0]).reshape(
        -1, 2, 2
    )  # (place, channel of the unit vector, channel of the result)
    alpha, sigma = (float(f(times[0].double())) for f in (plane.schedule.alpha, plane.schedule.sigma))
    mean, _, noisy = plane.moments(alpha, sigma)
    covariance = columns[0].T @ noisy @ columns[0] + torch.einsum("pki,pkj->ij", columns[1:], columns[1:])
    return out[0] + alpha * mean @ columns[0], covariance


@pytest.mark.parametrize(("sampler", "order"), SAMPLERS, ids=str)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
def test_the_law_of_the_data_is_reached(schedule: NoiseSchedule, sampler: Sampler, order: int) -> None:
    """The mean at once, the covariance as the steps get shorter."""
    plane = Plane(schedule)
    mean, covariance, _ = plane.moments(alpha=1.0, sigma=0.0)
    errors = []
    for num_steps in (50, 100):
        times = Quadratic()(schedule, num_steps, t_range=(0.0, 1.0))
        found_mean, found_covariance = law_at_the_end(sampler, plane, times)
        torch.testing.assert_close(found_mean, mean, rtol=0, atol=1e-12)
        errors.append(float((found_covariance - covariance).abs().max()))
    assert errors[-1] < (0.08 if order == 1 else 0.004)
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.45)


@pytest.mark.parametrize("schedule", [Cosine(), VPLinear(), ScaledLinear()], ids=lambda s: type(s).__name__)
def test_ddpms_large_variance_is_exact_for_normal_data(schedule: NoiseSchedule) -> None:
    """Ho et al. 2020, section 3.2: beta is the right variance of a step if x0 ~ N(0, I), whatever its length."""
    times = torch.tensor([1.0, 0.6, 0.5, 0.1])
    plane = Plane(schedule, mean=(0.0, 0.0), covariance=((1.0, 0.0), (0.0, 1.0)))
    _, covariance = law_at_the_end(DDPM(large_variance=1.0), plane, times)
    torch.testing.assert_close(covariance, torch.eye(2, dtype=torch.float64), rtol=1e-9, atol=1e-9)
    _, too_small = law_at_the_end(DDPM(), plane, times)
    assert float(too_small[0, 0]) < 0.9


def test_ddim_with_eta_1_is_ddpms_posterior() -> None:
    """Ho et al. 2020, 2006.11239, eq. 7, for a step of VPLinear."""
    schedule, t = VPLinear(), torch.tensor([0.5, 0.4])
    bar, bar1 = (schedule.alpha(t.double()) ** 2).tolist()
    beta = 1 - bar / bar1
    x0, x_t = 0.7, -1.1
    mean = (math.sqrt(bar1) * beta * x0 + math.sqrt(1 - beta) * (1 - bar1) * x_t) / (1 - bar)
    small, large = math.sqrt((1 - bar1) / (1 - bar) * beta), math.sqrt(beta)

    def denoise(x: Tensor, time: Tensor | float) -> Prediction:
        return Prediction(x0=torch.full_like(x, x0), eps=(x - math.sqrt(bar) * x0) / math.sqrt(1 - bar))

    x = torch.full((1, 1, 1, 1), x_t, dtype=torch.float64)
    cases = [(DDIM(eta=1.0), small), (DDPM(), small), (EulerAncestral(), small), (DPMpp2MSDE(), small)]
    for sampler, std in [*cases, (DDPM(large_variance=1.0), large)]:
        for z in (0.0, 1.0, -2.0):
            end = sampler(denoise, schedule, x, t, noise=lambda step, z=z: torch.full_like(x, z))
            assert float(end) == pytest.approx(mean + std * z, rel=1e-9)
