"""What every sampler keeps to, on every schedule."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ldm.diffusion.parameterizations import EDM, X0, Epsilon, Flow, V
from ldm.diffusion.schedules import Cosine, ImprovedCosine, RectifiedFlow, VPLinear
from ldm.diffusion.shifts import FixedShift, Shifted
from ldm.diffusion.tabulated import DDPMLinear, ScaledLinear
from ldm.diffusion.variance_exploding import VarianceExploding
from ldm.diffusion.zero_terminal_snr import ZeroTerminalSNR
from ldm.interfaces import NoiseSchedule, Prediction, Sampler
from ldm.sampling.ancestral import EulerAncestral
from ldm.sampling.consistency import LCM
from ldm.sampling.dpm_solver import DPMpp2M, DPMpp2MSDE, DPMpp2S, DPMpp3M
from ldm.sampling.grids import Grid, LogSNR, Quadratic, Uniform
from ldm.sampling.noise_grids import Karras
from ldm.sampling.samplers import DDIM, DDPM, Euler, Heun
from ldm.sampling.unipc import UniPC
from ldm.sampling.walk import LinearSampler, steps_along
from tests.sampling.oracles import Gaussian, alpha_sigma, no_noise

SCHEDULES: list[NoiseSchedule] = [
    RectifiedFlow(),
    Cosine(),
    ImprovedCosine(),
    VPLinear(),
    DDPMLinear(),
    ScaledLinear(),
    ZeroTerminalSNR(schedule=ScaledLinear()),
    Shifted(schedule=RectifiedFlow(), shift=FixedShift(factor=3.0)),
    VarianceExploding(),
]
DETERMINISTIC: list[Sampler] = [
    Euler(),
    DDIM(),
    EulerAncestral(eta=0.0),
    Heun(),
    DPMpp2S(),
    DPMpp2M(),
    DPMpp2MSDE(eta=0.0),
    DPMpp3M(),
    UniPC(order=1),
    UniPC(order=2),
    UniPC(order=2, bh1=True),
    UniPC(order=3),
]
STOCHASTIC: list[Sampler] = [
    DDIM(eta=0.5),
    DDPM(),
    DDPM(large_variance=1.0),
    EulerAncestral(),
    DPMpp2MSDE(),
    LCM(time_scale=1e12),  # with next to no skip, which is tested for itself
]
SAMPLERS = [*DETERMINISTIC, *STOCHASTIC]
GRIDS: list[Grid] = [Uniform(), LogSNR(), Karras(), Quadratic()]
X = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(9, 1, 1, 1)


def name(part: object) -> str:
    return str(part).replace(" ", "") if isinstance(part, tuple(map(type, SAMPLERS))) else type(part).__name__


over_samplers = pytest.mark.parametrize("sampler", SAMPLERS, ids=name)
over_schedules = pytest.mark.parametrize("schedule", SCHEDULES, ids=name)


def ones(x: Tensor) -> Callable[[int], Tensor]:
    return lambda step: torch.ones_like(x)


@pytest.mark.parametrize("sampler", DETERMINISTIC, ids=name)
@over_schedules
def test_ends_at_the_data_from_pure_noise(schedule: NoiseSchedule, sampler: Sampler) -> None:
    oracle = Gaussian(schedule)
    start = X * float(schedule.sigma(torch.tensor(1.0)))
    exact = oracle.path(start, 1.0, 0.0).float()
    for grid in GRIDS:
        times = grid(schedule, 100, t_range=(0.0, 1.0))
        end = sampler(oracle, schedule, start.float(), times, noise=no_noise)
        torch.testing.assert_close(end.float(), exact, atol=0.05, rtol=0)


@over_samplers
@over_schedules
def test_a_single_possible_picture_is_found_in_any_number_of_steps(
    schedule: NoiseSchedule, sampler: Sampler
) -> None:
    """With std 0 the denoiser knows x0 and eps at once, and every step is exact: no special case at the ends."""
    oracle = Gaussian(schedule, mean=0.3, std=0.0)
    x = X.float() * float(schedule.sigma(torch.tensor(1.0)))
    for grid, num_steps in itertools.product(GRIDS, (1, 2, 5)):
        times = grid(schedule, num_steps, t_range=(0.0, 1.0))
        end = sampler(oracle, schedule, x, times, noise=ones(x))
        torch.testing.assert_close(end, torch.full_like(end, 0.3), atol=1e-4, rtol=0)


@pytest.mark.parametrize("sampler", [s for s in SAMPLERS if isinstance(s, LinearSampler)], ids=name)
@over_schedules
def test_every_step_keeps_the_law_of_x_given_x0(schedule: NoiseSchedule, sampler: LinearSampler) -> None:
    """If the network knows x0, x1 must be alpha1 * x0 + sigma1 * (unit normal): what training showed the network."""
    for grid in GRIDS:
        steps = steps_along(schedule, grid(schedule, 12, t_range=(0.0, 1.0)))
        for step, row in zip(steps, sampler.rows(steps), strict=True):
            assert row.x * step.alpha + sum(row.x0) == pytest.approx(step.alpha1, abs=1e-9)
            if sampler != DDPM(large_variance=1.0):  # which is right for another law of x0
                assert math.hypot(row.x * step.sigma, row.noise) == pytest.approx(step.sigma1, abs=1e-9)


@pytest.mark.parametrize("parameterization", [Epsilon(), X0(), V(), Flow(), EDM()], ids=name)
@over_samplers
def test_every_parameterization_gives_the_same_picture(sampler: Sampler, parameterization: object) -> None:
    """Samplers read x0 and eps, and both agree with x_t whatever the network was asked for."""
    schedule = ScaledLinear()
    oracle = Gaussian(schedule)

    def through_the_network(x: Tensor, t: Tensor | float) -> Prediction:
        alpha, sigma = alpha_sigma(schedule, x, t)
        p, q = parameterization.target_coeffs(alpha, sigma)  # type: ignore[attr-defined]
        x0, eps = oracle(x, t)
        output, det = p * x0 + q * eps, alpha * q - sigma * p
        return Prediction(x0=(q * x - sigma * output) / det, eps=(alpha * output - p * x) / det)

    times = Karras()(schedule, 8, t_range=(0.001, 1.0))
    direct = sampler(oracle, schedule, X, times, noise=ones(X))
    torch.testing.assert_close(
        sampler(through_the_network, schedule, X, times, noise=ones(X)), direct, rtol=1e-7, atol=1e-7
    )


@over_schedules
def test_samplers_that_are_the_same_by_another_road(schedule: NoiseSchedule) -> None:
    oracle, times = Gaussian(schedule), Uniform()(schedule, 10, t_range=(0.0, 1.0))

    def walk(sampler: Sampler) -> Tensor:
        return sampler(oracle, schedule, X, times, noise=lambda step: (step + 1) * torch.cos(7 * X))

    torch.testing.assert_close(walk(DDIM(eta=0.0)), walk(Euler()))
    torch.testing.assert_close(walk(EulerAncestral(eta=0.3)), walk(DDIM(eta=0.3)))
    torch.testing.assert_close(walk(DDPM()), walk(DDIM(eta=1.0)))
    torch.testing.assert_close(walk(DPMpp2MSDE(eta=0.0)), walk(DPMpp2M()))


@pytest.mark.parametrize("schedule", [RectifiedFlow(), Cosine(), ImprovedCosine()], ids=name)
@pytest.mark.parametrize(
    "sampler", [*DETERMINISTIC, DDIM(eta=0.5), DDPM(), EulerAncestral(), DPMpp2MSDE(), LCM()], ids=name
)
def test_the_ends_are_the_limits_of_times_near_them(schedule: NoiseSchedule, sampler: Sampler) -> None:
    """A step from alpha = 0, and one to sigma = 0, against steps that begin and end next to them."""
    oracle, late, early = Gaussian(schedule), 1 - 1e-12, 1e-12

    def walk(times: list[float]) -> Tensor:
        return sampler(oracle, schedule, X, torch.tensor(times, dtype=torch.float64), noise=ones(X))

    torch.testing.assert_close(walk([1.0, 0.7]), walk([late, 0.7]), rtol=0, atol=1e-5)
    if not isinstance(sampler, Heun | DPMpp2S):  # which ask twice, unless there is no other end to ask at
        torch.testing.assert_close(walk([0.3, 0.0]), walk([0.3, early]), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("sampler", "num_calls"), [(Euler(), 1), (Heun(), 2)], ids=str)
def test_on_the_rectified_flow_they_are_the_textbook_methods(sampler: Sampler, num_calls: int) -> None:
    schedule, oracle, h = RectifiedFlow(), Gaussian(RectifiedFlow()), 0.2

    def velocity(x: Tensor, t: float) -> Tensor:
        prediction = oracle(x, t)
        return prediction.eps - prediction.x0

    k1 = velocity(X, 0.6)
    k2 = velocity(X - h * k1, 0.6 - h)
    textbook = X - h * (k1 if num_calls == 1 else (k1 + k2) / 2)
    times = torch.tensor([0.6, 0.6 - h], dtype=torch.float64)
    torch.testing.assert_close(
        sampler(oracle, schedule, X, times, noise=no_noise), textbook, atol=1e-12, rtol=0
    )


def test_lcm_is_the_identity_next_to_the_data() -> None:
    """c_skip -> 1 and c_out -> 0 as t -> 0, so its answer there is x itself, whatever the network says."""

    def wrong(x: Tensor, t: Tensor | float) -> Prediction:
        return Prediction(x0=x + 100, eps=x)

    end = LCM()(wrong, RectifiedFlow(), X, torch.tensor([1e-9, 0.0]), noise=no_noise)
    torch.testing.assert_close(end, X, rtol=0, atol=0.01)


# network calls of a walk of 5 steps from alpha = 0 to sigma = 0
CALLS: dict[type, int] = {Heun: 9, DPMpp2S: 8}


@over_samplers
def test_number_of_network_calls_and_never_at_zero(sampler: Sampler) -> None:
    asked: list[float] = []

    def denoise(x: Tensor, t: Tensor | float) -> Prediction:
        assert isinstance(t, float), "guidance decides by the time in Python"
        asked.append(t)
        return Gaussian(RectifiedFlow())(x, t)

    times = Uniform()(RectifiedFlow(), 5, t_range=(0.0, 1.0))
    sampler(denoise, RectifiedFlow(), X, times, noise=ones(X))
    assert len(asked) == CALLS.get(type(sampler), 5)
    assert min(asked) > 0
    assert max(asked) == 1
    assert set(times[:-1].tolist()) <= set(asked)


@over_samplers
def test_on_step_sees_every_step_and_the_input_stays_as_it_was(sampler: Sampler) -> None:
    seen: list[int] = []
    x, before = X.clone(), X.clone()

    def on_step(step: int, x_t: Tensor, prediction: Prediction) -> None:
        assert x_t.shape == prediction.x0.shape == X.shape
        oracle = Gaussian(Cosine())(x_t, float(times[step]))
        torch.testing.assert_close(prediction.x0, oracle.x0)  # what was predicted for this x_t, at this time
        seen.append(step)

    times = Uniform()(Cosine(), 4, t_range=(0.0, 1.0))
    sampler(Gaussian(Cosine()), Cosine(), x, times, noise=ones(X), on_step=on_step)
    assert seen == [0, 1, 2, 3]
    torch.testing.assert_close(x, before, rtol=0, atol=0)


@over_samplers
def test_no_step_waits_for_the_device(sampler: Sampler) -> None:
    """Tensors on "meta" have shapes and no values: to ask one for a number, which stalls a GPU, is an error there."""

    def denoise(x: Tensor, t: Tensor | float) -> Prediction:
        return Prediction(x0=0.5 * x, eps=0.1 * x)

    for schedule in SCHEDULES:
        times = Uniform()(schedule, 5, t_range=(0.0, 1.0))
        x = torch.empty(2, 3, 4, 4, device="meta")
        end = sampler(denoise, schedule, x, times, noise=lambda step, x=x: torch.empty_like(x))
        assert end.shape == x.shape
        assert end.dtype == torch.float32


@over_samplers
def test_draws_noise_by_the_number_of_the_step_and_none_to_end_with(sampler: Sampler) -> None:
    drawn: list[int] = []

    def noise(step: int) -> Tensor:
        drawn.append(step)
        return torch.ones_like(X)

    times = Uniform()(Cosine(), 4, t_range=(0.0, 1.0))
    sampler(Gaussian(Cosine()), Cosine(), X, times, noise=noise)
    assert drawn == ([0, 1, 2] if sampler in STOCHASTIC else [])


@pytest.mark.parametrize("times", [[1.0], [0.0, 1.0], [0.5, 0.5], [1.5, 0.0], [0.5, -0.5]], ids=str)
@over_samplers
def test_times_that_do_not_fall_are_refused(sampler: Sampler, times: list[float]) -> None:
    with pytest.raises(ValueError, match="times must fall"):
        sampler(Gaussian(Cosine()), Cosine(), X, torch.tensor(times), noise=no_noise)


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: DDIM(eta=1.5), "eta=1.5"),
        (lambda: DDPM(large_variance=-0.1), "large_variance=-0.1"),
        (lambda: EulerAncestral(eta=-1), "eta=-1"),
        (lambda: DPMpp2MSDE(eta=-0.5), "eta=-0.5"),
        (lambda: DPMpp2S(middle=1.0), "middle=1.0"),
        (lambda: UniPC(order=4), "order=4"),
        (lambda: LCM(sigma_data=0), "sigma_data > 0"),
    ],
)
def test_a_setting_that_makes_no_sampler_is_refused(build: Callable[[], Sampler], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        build()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@over_samplers
def test_a_walk_can_be_captured_as_one_cuda_graph(sampler: Sampler) -> None:
    """With the noise drawn beforehand: then the walk is a fixed list of kernels."""
    schedule, times = RectifiedFlow(), Uniform()(RectifiedFlow(), 6, t_range=(0.0, 1.0))
    weight = torch.randn(8, 8, device="cuda")
    x = torch.randn(2, 8, 4, 4, device="cuda")
    drawn = torch.randn(6, *x.shape, device="cuda")

    def denoise(x_t: Tensor, t: Tensor | float) -> Prediction:
        velocity = torch.einsum("ij,bjhw->bihw", weight, x_t).tanh() * t
        return Prediction(x0=x_t - t * velocity, eps=x_t + (1 - t) * velocity)

    def walk() -> Tensor:
        return sampler(denoise, schedule, x, times, noise=drawn.__getitem__)

    walk()  # kernels are set up outside the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        end = walk()
    x.copy_(torch.randn_like(x))
    graph.replay()
    torch.testing.assert_close(end, walk())
