"""The laws of MeanFlow: the identity, the jump, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from ldm.diffusion.diffusion import Diffusion
from ldm.diffusion.mean_flow import (
    AdaptiveWeight,
    Derivative,
    Differences,
    ForwardMode,
    Jump,
    correction,
    refuse_other_paths,
)
from ldm.diffusion.parameterizations import Epsilon, Flow
from ldm.diffusion.schedules import Cosine, RectifiedFlow
from ldm.diffusion.shifts import FixedShift, Shifted
from ldm.diffusion.time_samplers import Uniform
from ldm.diffusion.weightings import Unweighted
from ldm.interfaces import Conditioning
from ldm.nn.dit import DiT
from ldm.sampling.guidance import ClassifierFree, Unguided
from ldm.sampling.mean_flow import MeanFlow
from ldm.sampling.samplers import Euler
from tests.sampling.oracles import Gaussian, Mixture, no_noise

X = torch.randn(5, 1, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
T = torch.tensor([0.2, 0.4, 0.7, 0.9, 1.0], dtype=torch.float64)
SPAN = torch.tensor([0.0, 0.3, 0.2, 0.9, 1.0], dtype=torch.float64)


def told(n: int = 5) -> Conditioning:
    return Conditioning(
        tokens=torch.zeros(n, 1, 1), mask=torch.ones(n, 1, dtype=torch.bool), pooled=torch.zeros(n, 1)
    )


def rows(x: Tensor) -> Tensor:
    return x[:, None, None, None]


class AverageOfGaussian(nn.Module):
    """The exact average velocity for data N(0.5, 0.7^2): by where the flow goes, and v itself where span is 0."""

    def forward(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        span = torch.zeros_like(t) if cond.span is None else cond.span
        t, r = rows(t), rows(t - span)

        def spread(t: Tensor) -> Tensor:
            return torch.sqrt((1 - t) ** 2 * 0.49 + t**2)

        end = (1 - r) * 0.5 + (x - (1 - t) * 0.5) * spread(r) / spread(t)
        still = rows(span) == 0
        return torch.where(still, velocity(x, t), (x - end) / torch.where(still, 1, t - r))


def velocity(x: Tensor, t: Tensor) -> Tensor:
    """eps - x0 of ``Gaussian``, differentiable."""
    surprise = (x - (1 - t) * 0.5) / ((1 - t) ** 2 * 0.49 + t**2)
    return t * surprise - 0.5 - (1 - t) * 0.49 * surprise


class AverageOfMixture(nn.Module):
    """The average velocity for data from ``Mixture``, by integrating its exact velocity: 400 steps of Runge-Kutta."""

    def __init__(self, oracle: Mixture) -> None:
        super().__init__()
        self.oracle = oracle

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        answer = self.oracle(x, t)
        return answer.eps - answer.x0

    def forward(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        assert cond.span is not None
        num, total, h = 400, torch.zeros_like(x), cond.span / 400
        for i in range(num):
            now = t - i * h
            k1 = self.velocity(x, now)
            k2 = self.velocity(x - rows(h) / 2 * k1, now - h / 2)
            k3 = self.velocity(x - rows(h) / 2 * k2, now - h / 2)
            k4 = self.velocity(x - rows(h) * k3, now - h)
            step = (k1 + 2 * k2 + 2 * k3 + k4) / 6
            x, total = x - rows(h) * step, total + step / num
        return total


def test_the_identity_holds_for_the_exact_average_of_a_gaussian() -> None:
    exact, v = AverageOfGaussian(), velocity(X, rows(T))
    u = exact(X, T, replace(told(), span=SPAN))

    def added(tangent: Tensor, derivative: Derivative) -> Tensor:
        return correction(exact, u, X, T, told(), span=SPAN, tangent=tangent, derivative=derivative)

    error = u + added(v, ForwardMode()) - v
    assert float(error.abs().max()) < 1e-12
    assert float((u - v).abs().max()) > 0.1, "the average is another thing than the velocity"
    wrong = u + added(torch.zeros_like(v), ForwardMode()) - v
    assert float(wrong.abs().max()) > 0.1, "the direction of the derivative matters"
    big, small = (u + added(v, Differences(step=h)) - v for h in (0.02, 0.01))
    assert 1.8 < float(big.norm() / small.norm()) < 2.2, "differences err by their length"
    assert float(small.abs().max()) < 0.02


def test_the_identity_holds_for_a_mixture_whose_average_was_integrated() -> None:
    oracle = Mixture(RectifiedFlow())
    exact = AverageOfMixture(oracle)
    t, span = T.clamp(max=0.95), 0.8 * SPAN
    v = exact.velocity(X, t)
    u = exact(X, t, replace(told(), span=span))
    error = u + correction(exact, u, X, t, told(), span=span, tangent=v, derivative=ForwardMode()) - v
    assert float(error.abs().max()) < 1e-6


@pytest.mark.parametrize("num_jumps", [1, 2, 5])
def test_jumps_of_the_exact_average_land_where_the_ode_does(num_jumps: int) -> None:
    diffusion = Diffusion(
        schedule=RectifiedFlow(), parameterization=Flow(), time_sampler=Uniform(), weighting=Unweighted()
    )
    times = torch.linspace(1, 0, num_jumps + 1, dtype=torch.float64)
    denoise = Unguided()(diffusion, AverageOfGaussian(), told(), None)
    found = MeanFlow()(denoise, diffusion.schedule, X, times, noise=no_noise)
    expected = Gaussian(diffusion.schedule).path(X, 1.0, 0.0)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    walked = Euler()(denoise, diffusion.schedule, X, times, noise=no_noise)
    assert num_jumps > 2 or float((walked - expected).abs().max()) > 0.1, (
        "which Euler does not in so few steps"
    )


def test_a_jump_goes_through_guidance_to_the_network() -> None:
    spans: list[Tensor | None] = []

    class Listens(nn.Module):
        def forward(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
            spans.append(cond.span)
            return torch.zeros_like(x)

    diffusion = Diffusion(
        schedule=RectifiedFlow(), parameterization=Flow(), time_sampler=Uniform(), weighting=Unweighted()
    )
    denoise = ClassifierFree(scale=2.0)(diffusion, Listens(), told(), told())
    denoise(X, Jump(0.75, until=0.25))
    denoise(X, 0.75)
    assert spans[0] is not None and spans[0].tolist() == [0.5] * 10
    assert spans[1] is None


def test_the_derivative_of_a_network_is_that_of_differences() -> None:
    torch.manual_seed(0)
    network = DiT(
        in_channels=1,
        patch_size=1,
        width=16,
        depth=2,
        num_heads=2,
        context_width=1,
        pooled_width=1,
        average=True,
    )
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    x, t, span = X.float(), T.float(), SPAN.float()
    tangent = torch.randn_like(x)
    cond = replace(told(), tokens=torch.ones(5, 1, 1), pooled=torch.ones(5, 1))
    cond = replace(cond, span=span)
    u = network(x, t, cond)
    found = ForwardMode()(network, u, x, t, cond, tangent)
    h = 1e-4  # a tenth of a radian of the fastest sinusoid of t
    ahead, behind = (network(x + d * tangent, t + d, replace(cond, span=span + d)) for d in (h, -h))
    slope = (ahead - behind) / (2 * h)
    assert float((found - slope).norm() / slope.norm()) < 0.02
    assert not found.requires_grad


def test_rows_without_a_span_are_left_out_of_the_derivative() -> None:
    asked: list[int] = []

    class Counts(AverageOfGaussian):
        def forward(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
            asked.append(len(x))
            return super().forward(x, t, cond)

    given = {"tangent": torch.ones_like(X), "derivative": ForwardMode()}
    found = correction(Counts(), X, X, T, told(), span=SPAN, **given)
    assert asked == [4] and float(found[0].abs().max()) == 0 and float(found[1:].abs().min()) > 0
    assert not correction(Counts(), X, X, T, told(), span=torch.zeros(5), **given).any()
    assert asked == [4]


def test_the_adaptive_weight_makes_samples_pull_alike_and_is_not_differentiated() -> None:
    error = torch.tensor([0.01, 1.0, 400.0], requires_grad=True)
    AdaptiveWeight(power=1.0, c=1e-9)(error.square()).sum().backward()
    assert error.grad is not None
    torch.testing.assert_close(error.grad * error.detach(), torch.full((3,), 2.0), rtol=1e-3, atol=0)
    assert torch.equal(AdaptiveWeight(power=0.0)(error), error)


@pytest.mark.parametrize(
    ("schedule", "parameterization"),
    [
        (RectifiedFlow(), Epsilon()),
        (Cosine(), Flow()),
        (Shifted(schedule=RectifiedFlow(), shift=FixedShift(factor=3.0)), Flow()),
    ],
)
def test_other_paths_are_refused(schedule: object, parameterization: object) -> None:
    refuse_other_paths(RectifiedFlow(), Flow())
    with pytest.raises(ValueError, match="diffusion=rectified_flow"):
        refuse_other_paths(schedule, parameterization)  # type: ignore[arg-type]
