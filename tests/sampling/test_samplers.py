from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ldm.diffusion.schedules import Cosine, RectifiedFlow, VPLinear
from ldm.interfaces import NoiseSchedule, Prediction, Sampler
from ldm.sampling.grids import LogSNR, Uniform
from ldm.sampling.samplers import DDIM, Euler, Heun
from tests.sampling.oracles import Gaussian, no_noise

SCHEDULES = [RectifiedFlow(), Cosine(), VPLinear()]
ORDERS = [(Euler(), 1), (DDIM(), 1), (Heun(), 2)]
SAMPLERS = [sampler for sampler, _ in ORDERS]
X = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(9, 1, 1, 1)


def name(part: object) -> str:
    return type(part).__name__ if not isinstance(part, int | float | tuple) else str(part)


def fitted_order(sampler: Sampler, schedule: NoiseSchedule, start: float, end: float) -> float:
    """The slope of log(error) over log(step), against the exact path of a Gaussian."""
    oracle = Gaussian(schedule)
    nums = [16, 32, 64, 128]
    errors = []
    for num_steps in nums:
        times = torch.linspace(start, end, num_steps + 1)
        exact = oracle.path(X, float(times[0]), float(times[-1]))
        errors.append(float((sampler(oracle, schedule, X, times, noise=no_noise) - exact).abs().max()))
    return float(-np.polyfit(np.log(nums), np.log(errors), 1)[0])


@pytest.mark.parametrize(("sampler", "order"), ORDERS, ids=name)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_order_of_convergence_between_the_ends(schedule: NoiseSchedule, sampler: Sampler, order: int) -> None:
    assert fitted_order(sampler, schedule, 0.95, 0.05) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize(("sampler", "order"), ORDERS, ids=name)
@pytest.mark.parametrize("schedule", [RectifiedFlow(), Cosine()], ids=name)
def test_order_of_convergence_from_pure_noise_to_data(
    schedule: NoiseSchedule, sampler: Sampler, order: int
) -> None:
    # VPLinear is left out: there sigma grows as the square root of t, so equal steps in t are not equal in sigma
    assert fitted_order(sampler, schedule, 1.0, 0.0) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("grid", [Uniform(), LogSNR()], ids=name)
@pytest.mark.parametrize("sampler", SAMPLERS, ids=name)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_ends_at_the_data_from_pure_noise(schedule: NoiseSchedule, sampler: Sampler, grid: Uniform) -> None:
    oracle = Gaussian(schedule)
    times = grid(schedule, 100, t_range=(0.0, 1.0))
    end = sampler(oracle, schedule, X.float(), times, noise=no_noise)
    torch.testing.assert_close(end, oracle.path(X, 1.0, 0.0).float(), atol=0.05, rtol=0, check_dtype=False)


@pytest.mark.parametrize("sampler", [Euler(), Heun(), DDIM(), DDIM(eta=0.5), DDIM(eta=1.0)], ids=str)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_a_single_possible_picture_is_found_in_one_step(schedule: NoiseSchedule, sampler: Sampler) -> None:
    """With std 0 the denoiser knows x0 and eps at once, and every step is exact."""
    oracle = Gaussian(schedule, mean=0.3, std=0.0)
    x = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    for num_steps in (1, 2, 5):
        times = Uniform()(schedule, num_steps, t_range=(0.0, 1.0))
        end = sampler(oracle, schedule, x, times, noise=lambda step: torch.ones_like(x))
        torch.testing.assert_close(end, torch.full_like(x, 0.3), atol=1e-2, rtol=0, check_dtype=False)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_euler_is_ddim_without_noise(schedule: NoiseSchedule) -> None:
    oracle, times = Gaussian(schedule), Uniform()(schedule, 10, t_range=(0.0, 1.0))
    euler = Euler()(oracle, schedule, X, times, noise=no_noise)
    torch.testing.assert_close(DDIM(eta=0.0)(oracle, schedule, X, times, noise=no_noise), euler)


@pytest.mark.parametrize(("sampler", "num_calls"), [(Euler(), 1), (Heun(), 2)], ids=name)
def test_on_the_rectified_flow_they_are_the_textbook_methods(sampler: Sampler, num_calls: int) -> None:
    schedule, oracle, h = RectifiedFlow(), Gaussian(RectifiedFlow()), 0.2

    def velocity(x: Tensor, t: float) -> Tensor:
        prediction = oracle(x, torch.full((len(x),), t))
        return prediction.eps - prediction.x0

    k1 = velocity(X, 0.6)
    k2 = velocity(X - h * k1, 0.6 - h)
    textbook = X - h * (k1 if num_calls == 1 else (k1 + k2) / 2)
    times = torch.tensor([0.6, 0.6 - h])
    torch.testing.assert_close(
        sampler(oracle, schedule, X, times, noise=no_noise), textbook, atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_ddim_keeps_the_law_of_the_data_for_any_eta(schedule: NoiseSchedule, eta: float) -> None:
    oracle = Gaussian(schedule)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, 1, 1, 1, generator=generator)
    times = Uniform()(schedule, 100, t_range=(0.0, 1.0))
    end = DDIM(eta=eta)(
        oracle, schedule, x, times, noise=lambda step: torch.randn(x.shape, generator=generator)
    )
    assert float(end.mean()) == pytest.approx(oracle.mean, abs=0.03)
    assert float(end.std()) == pytest.approx(oracle.std, abs=0.03)


def test_ddim_with_eta_1_is_ddpms_posterior() -> None:
    """Ho et al. 2020, 2006.11239, eq. 7, for a step of VPLinear."""
    schedule, t = VPLinear(), torch.tensor([0.5, 0.4])
    bar, bar1 = (schedule.alpha(t.double()) ** 2).tolist()
    beta = 1 - bar / bar1
    x0, x_t = 0.7, -1.1
    mean = (math.sqrt(bar1) * beta * x0 + math.sqrt(1 - beta) * (1 - bar1) * x_t) / (1 - bar)
    std = math.sqrt((1 - bar1) / (1 - bar) * beta)

    def denoise(x: Tensor, time: Tensor) -> Prediction:
        return Prediction(x0=torch.full_like(x, x0), eps=(x - math.sqrt(bar) * x0) / math.sqrt(1 - bar))

    x = torch.full((1, 1, 1, 1), x_t, dtype=torch.float64)
    for z in (0.0, 1.0, -2.0):
        end = DDIM(eta=1.0)(denoise, schedule, x, t, noise=lambda step, z=z: torch.full_like(x, z))
        assert float(end) == pytest.approx(mean + std * z, rel=1e-9)


@pytest.mark.parametrize(("sampler", "calls"), [(Euler(), 5), (DDIM(), 5), (Heun(), 9)], ids=name)
def test_number_of_network_calls_and_never_at_zero(sampler: Sampler, calls: int) -> None:
    asked: list[float] = []

    def denoise(x: Tensor, t: Tensor) -> Prediction:
        asked.extend(t.unique().tolist())
        return Gaussian(RectifiedFlow())(x, t)

    sampler(denoise, RectifiedFlow(), X, Uniform()(RectifiedFlow(), 5, t_range=(0.0, 1.0)), noise=no_noise)
    assert len(asked) == calls
    assert min(asked) > 0


@pytest.mark.parametrize("sampler", SAMPLERS, ids=name)
def test_on_step_sees_every_step_and_the_input_stays_as_it_was(sampler: Sampler) -> None:
    seen: list[int] = []
    x, before = X.clone(), X.clone()

    def on_step(step: int, x_t: Tensor, prediction: Prediction) -> None:
        assert x_t.shape == prediction.x0.shape == X.shape
        seen.append(step)

    times = Uniform()(Cosine(), 4, t_range=(0.0, 1.0))
    sampler(Gaussian(Cosine()), Cosine(), x, times, noise=no_noise, on_step=on_step)
    assert seen == [0, 1, 2, 3]
    torch.testing.assert_close(x, before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("sampler", "times"),
    list(itertools.product(SAMPLERS, [[1.0], [0.0, 1.0], [0.5, 0.5], [1.5, 0.0], [0.5, -0.5]])),
    ids=str,
)
def test_times_that_do_not_fall_are_refused(sampler: Sampler, times: list[float]) -> None:
    with pytest.raises(ValueError, match="times must fall"):
        sampler(Gaussian(Cosine()), Cosine(), X, torch.tensor(times), noise=no_noise)


def test_ddim_refuses_an_eta_beyond_1() -> None:
    with pytest.raises(ValueError, match="eta"):
        DDIM(eta=1.5)
