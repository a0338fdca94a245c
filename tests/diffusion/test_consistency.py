"""The laws of consistency: the boundary, the exact consistency function as the loss's zero, and the pairs of times."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ldm.diffusion.consistency import (
    Boundary,
    SkippedSteps,
    alpha_sigma,
    consistency_loss,
    pseudo_huber,
)
from ldm.diffusion.schedules import Cosine, RectifiedFlow, VPLinear
from ldm.diffusion.variance_exploding import VarianceExploding
from ldm.interfaces import Denoiser, NoiseSchedule, Prediction
from ldm.sampling.consistency import LCM
from ldm.sampling.samplers import Euler
from tests.sampling.oracles import Gaussian, no_noise

SCHEDULES = pytest.mark.parametrize("schedule", [RectifiedFlow(), Cosine(), VPLinear(), VarianceExploding()])
X = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def exact(oracle: Gaussian, boundary: Boundary) -> Denoiser:
    """The denoiser whose f is the exact consistency function: x_t -> where the flow ends."""

    def denoise(x_t: Tensor, t: Tensor | float) -> Prediction:
        assert isinstance(t, Tensor)
        alpha, sigma = alpha_sigma(oracle.schedule, t)
        ends = torch.cat([oracle.path(x_t[i : i + 1], float(t[i]), 0.0) for i in range(len(t))])
        c_skip, c_out = boundary.coefficients(alpha, sigma)
        x0 = (ends - c_skip * x_t) / c_out
        return Prediction(x0=x0, eps=(x_t - alpha * x0) / sigma)

    return denoise


def at(schedule: NoiseSchedule, t: Tensor) -> Tensor:
    """x_t (4, 2, 3, 3) at t (4,)."""
    alpha, sigma = alpha_sigma(schedule, t)
    return alpha * 0.5 + torch.sqrt(alpha**2 * 0.49 + sigma**2) * X


@SCHEDULES
def test_at_sigma_0_the_function_is_the_identity_whatever_the_network_says(schedule: NoiseSchedule) -> None:
    t = torch.zeros(4, dtype=torch.float64)
    alpha, sigma = alpha_sigma(schedule, t)
    nonsense = Prediction(x0=torch.full_like(X, torch.nan), eps=X)
    found = Boundary()(nonsense, X, alpha, sigma)
    assert torch.equal(found, X) or float(schedule.sigma(t[0])) > 0
    near = Boundary(scale=1.0)
    for small in (1e-3, 1e-6):  # and it gets there without a jump
        c_skip, c_out = near.coefficients(torch.tensor(1.0), torch.tensor(small))
        assert abs(float(c_skip) - 1) < 5 * small and float(c_out) < 3 * small


@SCHEDULES
def test_far_from_the_data_it_is_x0_and_agrees_with_the_sampler(schedule: NoiseSchedule) -> None:
    t = torch.linspace(0.03, 1.0, 50, dtype=torch.float64)
    c_skip, c_out = Boundary().coefficients(schedule.alpha(t), schedule.sigma(t))
    if not isinstance(schedule, VarianceExploding):  # which begins at next to no noise
        assert float(c_skip.max()) < 1e-5 and float((1 - c_out).max()) < 1e-5
    assert float(c_skip[-1]) < 1e-9 and float(c_out[-1]) == pytest.approx(1)


@SCHEDULES
def test_the_exact_function_is_the_losss_zero_up_to_the_solvers_error(schedule: NoiseSchedule) -> None:
    oracle, boundary = Gaussian(schedule), Boundary(scale=2.0)
    f = exact(oracle, boundary)
    t = torch.tensor([0.35, 0.5, 0.7, 0.9], dtype=torch.float64)

    def error(step: float) -> float:
        loss = consistency_loss(
            schedule,
            student=f,
            target=f,
            teacher=oracle,
            x_t=at(schedule, t),
            t=t,
            s=t - step,
            boundary=boundary,
            huber=1e-12,
        )
        return float(loss.max())

    big, small = error(0.02), error(0.01)
    assert small < 0.05
    assert 3.0 < big / small < 5.5, "a step of first order errs by its length squared"


@SCHEDULES
def test_data_in_one_point_has_no_solver_error_and_no_loss_at_all(schedule: NoiseSchedule) -> None:
    oracle, boundary = Gaussian(schedule, std=0.0), Boundary(scale=2.0)
    t = torch.tensor([0.3, 0.5, 0.8, 0.95], dtype=torch.float64)
    alpha, sigma = alpha_sigma(schedule, t)
    f = exact(oracle, boundary)
    arguments = {"target": f, "teacher": oracle, "x_t": alpha * 0.5 + sigma * X, "t": t, "s": 0.5 * t}
    loss = consistency_loss(schedule, student=f, boundary=boundary, huber=1e-3, **arguments)
    assert float(loss.max()) < 1e-12

    def off(x_t: Tensor, time: Tensor | float) -> Prediction:
        x0, eps = f(x_t, time)
        return Prediction(x0=x0 + 0.1, eps=eps)

    assert (
        float(consistency_loss(schedule, student=off, boundary=boundary, huber=1e-3, **arguments).min())
        > 1e-3
    )


def test_only_the_student_is_differentiated() -> None:
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)

    def denoise(x_t: Tensor, t: Tensor | float) -> Prediction:
        return Prediction(x0=weight * x_t, eps=x_t)

    t = torch.full((4,), 0.5, dtype=torch.float64)

    def gradient(student: Denoiser, target: Denoiser) -> float:
        loss = consistency_loss(
            RectifiedFlow(),
            student=student,
            target=target,
            teacher=denoise,
            x_t=X,
            t=t,
            s=t - 0.1,
            boundary=Boundary(),
            huber=1e-3,
        ).sum()
        return (
            float(torch.autograd.grad(loss, weight, allow_unused=True)[0] or 0) if loss.requires_grad else 0.0
        )

    def frozen(x_t: Tensor, t: Tensor | float) -> Prediction:
        return Prediction(x0=x_t.detach(), eps=x_t)

    assert gradient(denoise, denoise) != 0
    assert gradient(frozen, denoise) == 0


def test_the_exact_function_samples_in_one_step_what_the_ode_gives() -> None:
    schedule = RectifiedFlow()
    oracle = Gaussian(schedule)

    def f(x_t: Tensor, t: Tensor | float) -> Prediction:
        end = oracle.path(x_t, float(t), 0.0)
        return Prediction(x0=end, eps=x_t)

    times = torch.tensor([1.0, 0.0], dtype=torch.float64)
    jumped = LCM()(f, schedule, X, times, noise=no_noise)
    walked = Euler()(oracle, schedule, X, torch.linspace(1, 0, 4001, dtype=torch.float64), noise=no_noise)
    torch.testing.assert_close(jumped, walked, atol=2e-3, rtol=0)


def test_times_reach_both_ends_of_the_range_and_lie_skip_apart() -> None:
    steps = SkippedSteps(num_times=10, skip=3)
    t, s = steps(torch.linspace(0, 1 - 2**-24, 800), (0.1, 0.9))
    assert float(t.max()) == pytest.approx(0.9) and float(s.min()) == pytest.approx(0.1)
    torch.testing.assert_close(t - s, torch.full_like(t, 0.24))
    assert len(t.unique()) == 8
    counts = torch.stack([(t == one).sum() for one in t.unique()])
    assert counts.tolist() == [100] * 8, "every pair is as likely"


def test_pseudo_huber_is_square_near_0_and_absolute_far_off_and_its_scale_is_per_number() -> None:
    near, far = torch.full((1, 4, 2), 1e-5), torch.full((1, 4, 2), 3.0)
    assert float(pseudo_huber(near.double(), 1e-2)) == pytest.approx(1e-10 / 2e-2, rel=1e-3)
    assert float(pseudo_huber(far, 1e-3)) == pytest.approx(3.0, rel=1e-3)
    assert float(pseudo_huber(far[:, :1], 1e-3)) == pytest.approx(float(pseudo_huber(far, 1e-3)))


@pytest.mark.parametrize("wrong", [{"skip": 0}, {"skip": 11, "num_times": 10}])
def test_steps_that_cannot_be_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="1 <= skip <= num_times"):
        SkippedSteps(**wrong)
