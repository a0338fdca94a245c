"""How fast each sampler's error falls with the number of steps, on denoisers whose exact paths are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ldm.diffusion.schedules import Cosine, ImprovedCosine, RectifiedFlow, VPLinear
from ldm.diffusion.shifts import FixedShift, Shifted
from ldm.diffusion.variance_exploding import VarianceExploding
from ldm.interfaces import NoiseSchedule, Sampler
from ldm.sampling.ancestral import EulerAncestral
from ldm.sampling.dpm_solver import DPMpp2M, DPMpp2MSDE, DPMpp2S, DPMpp3M
from ldm.sampling.grids import Quadratic
from ldm.sampling.samplers import DDIM, Euler, Heun
from ldm.sampling.unipc import UniPC
from tests.sampling.oracles import Gaussian, Mixture, no_noise

SCHEDULES: list[NoiseSchedule] = [
    RectifiedFlow(),
    Cosine(),
    ImprovedCosine(),
    VPLinear(),
    Shifted(schedule=RectifiedFlow(), shift=FixedShift(factor=3.0)),
    VarianceExploding(),
]
ORDERS: list[tuple[Sampler, int]] = [
    (Euler(), 1),
    (DDIM(), 1),
    (EulerAncestral(eta=0.0), 1),
    (Heun(), 2),
    (DPMpp2S(), 2),
    (DPMpp2S(middle=0.3), 2),
    (DPMpp2M(), 2),
    (DPMpp2MSDE(eta=0.0), 2),
    # Zhao et al. 2023, 2302.04867: the corrector lifts the predictor's order by one
    (UniPC(order=1), 2),
    (UniPC(order=2), 3),
    (UniPC(order=2, bh1=True), 3),
    (UniPC(order=3), 4),
]
Z = torch.linspace(-1.9, 2.1, 9, dtype=torch.float64).reshape(9, 1, 1, 1)


def name(part: object) -> str:
    return part.__name__ if isinstance(part, type) else str(part).split("(schedule")[0].replace(" ", "")


def every(parts: list) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("sampler", "order"), parts, ids=name)


over_schedules = pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
over_oracles = pytest.mark.parametrize("oracle", [Gaussian, Mixture], ids=name)


def equal_steps(start: float, end: float, num: int) -> Tensor:
    return torch.linspace(start, end, num + 1, dtype=torch.float64)


def error(sampler: Sampler, denoise: Gaussian | Mixture, times: Tensor) -> float:
    """The largest one at the end of the walk, over points spread as x is where it starts."""
    start, end = float(times[0]), float(times[-1])
    x = Z * float(denoise.schedule.sigma(times[0]))
    walked = sampler(denoise, denoise.schedule, x, times, noise=no_noise)
    return float((walked - denoise.path(x, start, end)).abs().max())


@every(ORDERS)
@over_schedules
@over_oracles
def test_order_of_convergence_between_the_ends(
    oracle: type, schedule: NoiseSchedule, sampler: Sampler, order: int
) -> None:
    coarse, fine = (error(sampler, oracle(schedule), equal_steps(0.95, 0.05, num)) for num in (64, 128))
    assert math.log2(coarse / fine) == pytest.approx(order, rel=0.17)  # the higher, the later it sets in


@over_schedules
@over_oracles
def test_3m_has_order_three_after_a_start_that_allows_it(oracle: type, schedule: NoiseSchedule) -> None:
    """A multistep method begins with a step of first order, whose error is that step's length squared.

    So the first step is given the length h^(3/2) and the others are equal; the error is then of order h^3. With
    equal steps throughout it is of order h^2 in the end, as for every multistep method without a special start.
    """

    def graded(num: int) -> Tensor:
        first = 0.95 - 0.9 * num**-1.5
        return torch.cat([torch.tensor([0.95], dtype=torch.float64), equal_steps(first, 0.05, num - 1)])

    coarse, fine = (error(DPMpp3M(), oracle(schedule), graded(num)) for num in (128, 256))
    assert 2.75 < math.log2(coarse / fine) < 3.5


# From pure noise to data the order is two at most. Where the schedule has alpha = 0 at t = 1, lam = log(alpha / sigma)
# runs over an infinite range, and the first equal steps in t are long in lam: the k-th has h = log(1 + 1/k). A
# polynomial in lam then misses x0 by a part 1/k^2 of its change, the k-th step adds 1/k to a sum of errors in units
# of h^2, and the error is h^2 log(1/h), of slope 1.8 between 128 and 256 steps. Heun's method does not use lam.
FROM_NOISE: list[tuple[Sampler, int]] = [
    (Euler(), 1),
    (Heun(), 2),
    (DPMpp2S(), 2),
    (DPMpp2M(), 2),
    (UniPC(order=1), 2),
]


@every(FROM_NOISE)
@over_schedules
def test_order_of_convergence_from_pure_noise_to_data(
    schedule: NoiseSchedule, sampler: Sampler, order: int
) -> None:
    """Over ``Quadratic``: where sigma grows like sqrt(t), equal steps in t would end with one that is too long."""
    grids = (Quadratic()(schedule, num, t_range=(0.0, 1.0)) for num in (128, 256))
    coarse, fine = (error(sampler, Mixture(schedule), times) for times in grids)
    assert order - 0.35 < math.log2(coarse / fine) < order + 0.25


@every(FROM_NOISE)
@over_oracles
def test_order_of_convergence_from_pure_noise_to_data_in_equal_steps(
    oracle: type, sampler: Sampler, order: int
) -> None:
    coarse, fine = (error(sampler, oracle(RectifiedFlow()), equal_steps(1.0, 0.0, num)) for num in (128, 256))
    assert order - 0.35 < math.log2(coarse / fine) < order + 0.25
