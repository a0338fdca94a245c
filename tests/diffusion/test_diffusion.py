"""The laws of ``Diffusion``, over every schedule with every parameterization and every weighting."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import pytest
import torch
from scipy import stats
from torch import Tensor

from ldm.diffusion.diffusion import Diffusion
from ldm.diffusion.parameterizations import X0, Epsilon, Flow, V
from ldm.diffusion.schedules import RectifiedFlow, log_snr
from ldm.diffusion.time_samplers import LogNormalSigma, Uniform
from ldm.diffusion.uncertainty import LearnedUncertainty
from ldm.diffusion.weightings import MinSNR
from ldm.interfaces import Conditioning, NoiseSchedule, Parameterization
from tests.diffusion.parts import (
    COND,
    ENDS_WITHOUT_PICTURE,
    PARAMETERIZATIONS,
    SCHEDULES,
    WEIGHTINGS,
    X0_WEIGHTINGS,
    diffusion,
    every_schedule,
    sample,
    says,
)

PAIRS = list(itertools.product(SCHEDULES, PARAMETERIZATIONS))
REFUSED = [(name, "Epsilon") for name in ENDS_WITHOUT_PICTURE]  # over all times
every_pair = pytest.mark.parametrize(
    ("schedule", "parameterization"),
    [pytest.param(SCHEDULES[s], PARAMETERIZATIONS[p], id=f"{s}-{p}") for s, p in PAIRS],
)


def coefficients(it: Diffusion, t: Tensor) -> tuple[Tensor, ...]:
    """alpha, sigma, p, q, each (B, 1, 1, 1)."""
    t = t.reshape(-1, 1, 1, 1)
    alpha, sigma = it.schedule.alpha(t), it.schedule.sigma(t)
    return alpha, sigma, *it.parameterization.target_coeffs(alpha, sigma)


@every_pair
def test_a_network_that_hits_the_target_has_no_loss_and_predicts_x0_and_eps(
    schedule: NoiseSchedule, parameterization: Parameterization
) -> None:
    it = diffusion(schedule, parameterization)
    x0, eps, t = sample()
    _, _, p, q = coefficients(it, t)
    network = says(p * x0 + q * eps)
    torch.testing.assert_close(it.loss(network, x0, COND, eps=eps, t=t), torch.zeros(8))
    prediction = it.predict(network, it.add_noise(x0, eps, t), t, COND)
    assert prediction.x0.dtype == prediction.eps.dtype == torch.float32
    # an error of the output times the factors of the solve: the tolerance is float32's for the worst pair
    torch.testing.assert_close(prediction.x0, x0, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(prediction.eps, eps, atol=1e-3, rtol=1e-3)


@every_pair
def test_a_weight_in_x0_space_means_the_same_for_every_parameterization(
    schedule: NoiseSchedule, parameterization: Parameterization
) -> None:
    """Loss and gradient, as functions of the x0 that the network stands for, are those of w * |x0 - its x0|^2."""
    x0, eps, t = sample(torch.float64)
    guess = torch.randn(x0.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    level = log_snr(schedule, t)
    for weighting in X0_WEIGHTINGS.values():
        it = diffusion(schedule, parameterization, weighting=weighting)
        alpha, sigma, p, q = coefficients(it, t)
        its_x0 = guess.clone().requires_grad_()
        its_eps = (it.add_noise(x0, eps, t) - alpha * its_x0) / sigma
        loss = it.loss(says(p * its_x0 + q * its_eps), x0, COND, eps=eps, t=t)
        (gradient,) = torch.autograd.grad(loss.sum(), its_x0)
        weight = weighting(level, torch.ones_like(level))
        torch.testing.assert_close(loss, weight * (guess - x0).square().mean((1, 2, 3)), rtol=1e-8, atol=0)
        expected = 2 * weight.reshape(-1, 1, 1, 1) * (guess - x0) / x0[0].numel()
        torch.testing.assert_close(gradient, expected, rtol=1e-7, atol=1e-12)


def test_unweighted_flow_loss_is_plain_flow_matching() -> None:
    x0, eps, t = sample()
    it = diffusion(RectifiedFlow(), Flow(), t_range=(0.0, 1.0))
    expected = (0.3 - (eps - x0)).square().mean((1, 2, 3))
    torch.testing.assert_close(it.loss(says(torch.full_like(x0, 0.3)), x0, COND, eps=eps, t=t), expected)


@every_schedule
def test_x_t_has_the_promised_law(schedule: NoiseSchedule) -> None:
    """Of one picture under standard normal noise: normal in each place, mean alpha * x0, deviation sigma."""
    t = torch.tensor([0.02, 0.3, 0.7, 1.0])
    eps = torch.randn(4, 1, 50, 50, generator=torch.Generator().manual_seed(0))
    x_t = diffusion(schedule, V()).add_noise(torch.full_like(eps, 0.7), eps, t)
    for row, mean, std in zip(x_t, 0.7 * schedule.alpha(t), schedule.sigma(t), strict=True):
        assert stats.kstest(row.flatten().numpy(), stats.norm(float(mean), float(std)).cdf).pvalue > 0.01
        assert row.mean().sub(mean).abs() < 4 * std / 50


@every_pair
def test_everything_stays_float32_under_autocast(
    schedule: NoiseSchedule, parameterization: Parameterization
) -> None:
    x0, eps, t = sample()
    x0 = x0.bfloat16().float()
    zero = says(torch.zeros_like(x0))
    linear = torch.nn.Linear(5, 5)

    def network(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        assert x.dtype == t.dtype == torch.float32
        return linear(x)

    for weighting in WEIGHTINGS.values():
        it = diffusion(schedule, parameterization, weighting=weighting)

        def everything(x0: Tensor, it: Diffusion = it) -> list[Tensor]:
            x_t = it.add_noise(x0, eps, t)
            return [x_t, *it.predict(zero, x_t, t, COND), it.loss(zero, x0, COND, eps=eps, t=t)]

        plain = everything(x0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert it.loss(network, x0, COND, eps=eps, t=t).dtype == torch.float32
            under = everything(x0.bfloat16())
        for a, b in zip(plain, under, strict=True):
            assert b.dtype == torch.float32
            torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize(("name", "parameterization"), PAIRS)
def test_ill_posed_pairs_are_refused_and_the_named_remedies_work(name: str, parameterization: str) -> None:
    schedule, pair = SCHEDULES[name], (SCHEDULES[name], PARAMETERIZATIONS[parameterization])
    if (name, parameterization) not in REFUSED:
        diffusion(*pair, t_range=(0.0, 1.0))
        return
    with pytest.raises(
        ValueError, match=r"Epsilon with \w+ is ill-posed at t = 1 .*V or Flow.*t_range=\[0, 0\.999\]"
    ) as refusal:
        diffusion(*pair, t_range=(0.0, 1.0))
    for remedy in (V(), Flow()):
        diffusion(schedule, remedy, t_range=(0.0, 1.0))
    low, high = re.search(r"t_range=\[(.*), (.*)\]", str(refusal.value)).groups()
    diffusion(*pair, t_range=(float(low), float(high)))


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
    it = diffusion(RectifiedFlow(), Flow(), time_sampler=Uniform(), t_range=(0.25, 0.75))
    t = it.times(torch.tensor([0.0, 0.5, 1.0]), slots=range(3), num_slots=3)
    torch.testing.assert_close(t, torch.tensor([0.25, 0.5, 0.75]))


@every_schedule
def test_a_law_in_sigma_is_one_in_sigma_for_any_range(schedule: NoiseSchedule) -> None:
    """Quantiles of noise levels within the range are where they belong; those without become its ends."""
    it = diffusion(schedule, V(), time_sampler=LogNormalSigma(mean=-1.0, std=1.0), t_range=(0.0, 1.0))
    u = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    full = it.times(u, slots=range(19), num_slots=19)
    low, high = float(full[3]) + 1e-9, float(full[15]) - 1e-9
    narrow = replace(it, t_range=(low, high)).times(u, slots=range(19), num_slots=19)
    torch.testing.assert_close(narrow, full.clamp(low, high), rtol=0, atol=1e-12)


@every_pair
def test_the_loss_is_finite_at_the_rarest_draws(
    schedule: NoiseSchedule, parameterization: Parameterization
) -> None:
    full = (0.0, 0.999) if isinstance(parameterization, Epsilon) else (0.0, 1.0)
    x0, eps, _ = sample()
    for weighting in WEIGHTINGS.values():
        it = diffusion(
            schedule, parameterization, weighting=weighting, uncertainty=LearnedUncertainty(), t_range=full
        )
        t = it.times(torch.tensor([0.0] * 4 + [1 - 2.0**-24] * 4), slots=range(8), num_slots=8)
        assert it.loss(says(eps), x0, COND, eps=eps, t=t).isfinite().all(), weighting


@every_schedule
def test_the_network_is_asked_in_the_schedule_s_time(schedule: NoiseSchedule) -> None:
    it = diffusion(schedule, PARAMETERIZATIONS["EDM"])
    x0, eps, t = sample()
    asked: list[tuple[Tensor, Tensor]] = []

    def network(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        asked.append((x, t))
        return torch.zeros_like(x)

    x_t = it.add_noise(x0, eps, t)
    it.loss(network, x0, COND, eps=eps, t=t)
    it.predict(network, x_t, t, COND)
    it.denoiser(network, COND)(x_t, t)
    alpha, sigma, _, _ = coefficients(it, t)
    for x, time in asked:
        torch.testing.assert_close(time, schedule.network_time(t))
        torch.testing.assert_close(x, x_t / torch.sqrt(0.25 * alpha**2 + sigma**2))


def test_a_denoiser_takes_a_number_for_the_time_of_all_rows() -> None:
    it = diffusion(RectifiedFlow(), X0())
    x0, _, _ = sample()
    denoise = it.denoiser(says(x0), COND)
    one, other = denoise(x0, 0.25), denoise(x0, torch.full((8,), 0.25))
    torch.testing.assert_close(one.x0, other.x0)  # a number's coefficients are rounded later
    torch.testing.assert_close(one.eps, other.eps)


def test_min_snr_in_words() -> None:
    """An oracle that shares no code with the weightings: eps prediction at SNR 81 / 1, gamma 5."""
    it = diffusion(RectifiedFlow(), Epsilon(), weighting=MinSNR(gamma=5.0))
    x0, eps, _ = sample()
    loss = it.loss(says(eps + 0.1), x0, COND, eps=eps, t=torch.full((8,), 0.1))
    torch.testing.assert_close(loss, torch.full((8,), 0.01 * 5 / 81), rtol=1e-4, atol=0)
