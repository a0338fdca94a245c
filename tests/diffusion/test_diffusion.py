from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ldm.diffusion.diffusion import Diffusion
from ldm.diffusion.parameterizations import X0, Epsilon, Flow, V
from ldm.diffusion.schedules import Cosine, RectifiedFlow, VPLinear, log_snr
from ldm.diffusion.time_samplers import LogitNormal, Stratified, Uniform
from ldm.diffusion.weightings import MinSNR, Unweighted
from ldm.interfaces import Conditioning, NoiseSchedule, Parameterization, Weighting

SCHEDULES = [RectifiedFlow(), Cosine(), VPLinear()]
PARAMETERIZATIONS = [Epsilon(), X0(), V(), Flow()]
PAIRS = [
    pytest.param(
        schedule, parameterization, id=f"{type(schedule).__name__}-{type(parameterization).__name__}"
    )
    for schedule, parameterization in itertools.product(SCHEDULES, PARAMETERIZATIONS)
]
COND = Conditioning(
    tokens=torch.zeros(8, 1, 1), mask=torch.ones(8, 1, dtype=torch.bool), pooled=torch.zeros(8, 1)
)


def diffusion(
    schedule: NoiseSchedule,
    parameterization: Parameterization,
    weighting: Weighting | None = None,
    t_range: tuple[float, float] = (0.001, 0.999),
) -> Diffusion:
    return Diffusion(
        schedule=schedule,
        parameterization=parameterization,
        time_sampler=Stratified(law=LogitNormal()),
        weighting=weighting or Unweighted(),
        t_range=t_range,
    )


def sample(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """x0, eps (8, 4, 3, 5) and t (8,)."""
    generator = torch.Generator().manual_seed(seed)
    x0, eps = torch.randn(2, 8, 4, 3, 5, generator=generator)
    return x0, eps, torch.linspace(0.05, 0.95, 8)


def knows(target: Tensor) -> Callable[[Tensor, Tensor, Conditioning], Tensor]:
    return lambda x, t, cond: target


@pytest.mark.parametrize(("schedule", "parameterization"), PAIRS)
def test_a_network_that_hits_the_target_has_no_loss_and_predicts_x0_and_eps(
    schedule: NoiseSchedule, parameterization: Parameterization
) -> None:
    it = diffusion(schedule, parameterization)
    x0, eps, t = sample()
    shape = (-1, 1, 1, 1)
    p, q = parameterization.target_coeffs(schedule.alpha(t).reshape(shape), schedule.sigma(t).reshape(shape))
    network = knows(p * x0 + q * eps)
    torch.testing.assert_close(it.loss(network, x0, COND, eps=eps, t=t), torch.zeros(8))
    prediction = it.predict(network, it.add_noise(x0, eps, t), t, COND)
    torch.testing.assert_close(prediction.x0, x0, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(prediction.eps, eps, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(("schedule", "parameterization"), PAIRS)
def test_a_weight_in_x0_space_means_the_same_for_every_parameterization(
    schedule: NoiseSchedule, parameterization: Parameterization
) -> None:
    """The min-SNR loss of any network equals min(SNR, gamma) * |x0 - its x0|^2."""
    it = diffusion(schedule, parameterization, MinSNR(gamma=5.0))
    x0, eps, t = sample()
    network = knows(torch.randn(x0.shape, generator=torch.Generator().manual_seed(9)))
    predicted = it.predict(network, it.add_noise(x0, eps, t), t, COND).x0
    error = (predicted - x0).square().mean((1, 2, 3))
    weight = torch.exp(log_snr(schedule, t)).clamp(max=5.0)
    torch.testing.assert_close(it.loss(network, x0, COND, eps=eps, t=t), weight * error, rtol=2e-4, atol=1e-5)


def test_unweighted_flow_loss_is_plain_flow_matching() -> None:
    x0, eps, t = sample()
    it = diffusion(RectifiedFlow(), Flow(), t_range=(0.0, 1.0))
    expected = (0.3 - (eps - x0)).square().mean((1, 2, 3))
    torch.testing.assert_close(it.loss(knows(torch.full_like(x0, 0.3)), x0, COND, eps=eps, t=t), expected)


@pytest.mark.parametrize(("schedule", "parameterization"), PAIRS)
def test_everything_stays_float32_under_autocast(
    schedule: NoiseSchedule, parameterization: Parameterization
) -> None:
    it = diffusion(schedule, parameterization, MinSNR())
    x0, eps, t = sample()
    x0 = x0.bfloat16().float()
    linear = torch.nn.Linear(5, 5)

    def network(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        assert x.dtype == t.dtype == torch.float32
        return linear(x).float()

    def everything(x0: Tensor) -> list[Tensor]:
        x_t = it.add_noise(x0, eps, t)
        zero = knows(torch.zeros(x0.shape, dtype=x0.dtype))
        return [x_t, *it.predict(zero, x_t, t, COND), it.loss(zero, x0, COND, eps=eps, t=t)]

    plain = everything(x0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert it.loss(network, x0, COND, eps=eps, t=t).dtype == torch.float32
        under = everything(x0.bfloat16())
    for a, b in zip(plain, under, strict=True):
        assert b.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("schedule", [RectifiedFlow(), Cosine()], ids=["RectifiedFlow", "Cosine"])
def test_epsilon_is_refused_where_no_picture_is_left(schedule: NoiseSchedule) -> None:
    with pytest.raises(
        ValueError, match=r"Epsilon with \w+ is ill-posed at t = 1 .*V or Flow.*t_range=\[0, 0.999\]"
    ):
        diffusion(schedule, Epsilon(), t_range=(0.0, 1.0))
    diffusion(schedule, Epsilon(), t_range=(0.0, 0.999))  # the remedy it names works


@pytest.mark.parametrize(("schedule", "parameterization"), PAIRS)
def test_every_other_pair_is_accepted_over_all_times(
    schedule: NoiseSchedule, parameterization: Parameterization
) -> None:
    if isinstance(parameterization, Epsilon) and not isinstance(schedule, VPLinear):
        pytest.skip("refused, see above")
    diffusion(schedule, parameterization, t_range=(0.0, 1.0))


class Turning:
    """A target that swings from one side of x_t to the other, so that somewhere it says nothing new."""

    def target_coeffs(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full_like(alpha, 0.6), torch.full_like(alpha, 0.4)

    def input_scale(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return torch.ones_like(alpha)


def test_a_singularity_between_the_ends_is_found() -> None:
    with pytest.raises(
        ValueError, match=r"Turning with RectifiedFlow is ill-posed at t = 0\.4.*V or Flow\.$"
    ):
        diffusion(RectifiedFlow(), Turning(), t_range=(0.0, 1.0))


@pytest.mark.parametrize("t_range", [(0.5, 0.5), (-0.1, 1.0), (0.0, 1.1), (1.0, 0.0)])
def test_impossible_ranges_are_refused(t_range: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="t_range"):
        diffusion(RectifiedFlow(), Flow(), t_range=t_range)


def test_times_fill_the_range_and_no_more() -> None:
    it = Diffusion(
        schedule=RectifiedFlow(),
        parameterization=Flow(),
        time_sampler=Uniform(),
        weighting=Unweighted(),
        t_range=(0.25, 0.75),
    )
    t = it.times(torch.tensor([0.0, 0.5, 1.0]), slots=range(3), num_slots=3)
    torch.testing.assert_close(t, torch.tensor([0.25, 0.5, 0.75]))


@pytest.mark.parametrize(("schedule", "parameterization"), PAIRS)
def test_the_loss_is_finite_at_the_rarest_draws(
    schedule: NoiseSchedule, parameterization: Parameterization
) -> None:
    full = (0.0, 0.999) if isinstance(parameterization, Epsilon) else (0.0, 1.0)
    it = diffusion(schedule, parameterization, MinSNR(), t_range=full)
    t = it.times(torch.tensor([0.0] * 4 + [1 - 2.0**-24] * 4), slots=range(8), num_slots=8)
    x0, eps, _ = sample()
    assert it.loss(knows(eps), x0, COND, eps=eps, t=t).isfinite().all()
