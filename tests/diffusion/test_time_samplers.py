from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from ldm.diffusion.schedules import RectifiedFlow, log_snr
from ldm.diffusion.time_samplers import (
    Beta,
    CosMap,
    LogitNormal,
    LogNormalSigma,
    ModeHeavyTails,
    Stratified,
    Uniform,
)
from ldm.interfaces import NoiseSchedule, TimeSampler
from tests.diffusion.parts import LAWS, every_law, every_schedule

U = torch.linspace(0.001, 0.999, 401, dtype=torch.float64)


def ask(law: TimeSampler, u: Tensor, schedule: NoiseSchedule | None = None) -> Tensor:
    return law(u, slots=range(len(u)), num_slots=len(u), schedule=schedule or RectifiedFlow())


@every_law
def test_quantile_functions_rise_within_0_and_1(law: TimeSampler) -> None:
    t = ask(law, torch.linspace(1e-4, 1 - 1e-4, 1001))
    assert t.dtype == torch.float32
    assert (t.diff() > 0).all()
    assert t.min() > 0 and t.max() < 1


@every_law
def test_the_rarest_draws_stay_within_the_ends(law: TimeSampler) -> None:
    t = ask(law, torch.tensor([2.0**-24, 1 - 2.0**-24]))
    assert t.isfinite().all() and t[0] > 0 and t[1] <= 1


@pytest.mark.parametrize("name", ["Uniform", "LogitNormal", "ModeHeavyTails(1.29)", "CosMap"])
def test_symmetric_laws_are_symmetric(name: str) -> None:
    torch.testing.assert_close(ask(LAWS[name], U), 1 - ask(LAWS[name], 1 - U))


# --- against the published densities: the density at t(u) is 1 / (dt/du) ---------------------------------------


def density(law: TimeSampler, u: Tensor) -> tuple[Tensor, Tensor]:
    """t(u) and the law's density there, by autograd through its quantile function."""
    u = u.clone().requires_grad_()
    t = ask(law, u)
    (slope,) = torch.autograd.grad(t.sum(), u)
    return t.detach(), 1 / slope


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.7, 1.6), (0.5, 0.6)])
def test_logit_normal_density(mean: float, std: float) -> None:
    # Esser et al. 2024, eq. 19
    t, found = density(LogitNormal(mean=mean, std=std), U)
    published = torch.exp(-((torch.logit(t) - mean) ** 2) / (2 * std**2))
    torch.testing.assert_close(found, published / (std * math.sqrt(2 * math.pi) * t * (1 - t)))


def test_cos_map_density_and_map() -> None:
    # Esser et al. 2024, section 3.1
    t, found = density(CosMap(), U)
    torch.testing.assert_close(found, 2 / (math.pi - 2 * math.pi * t + 2 * math.pi * t**2))
    torch.testing.assert_close(t, 1 - 1 / (torch.tan(math.pi / 2 * U) + 1))
    cosine = 2 * torch.log(torch.cos(math.pi / 2 * U) / torch.sin(math.pi / 2 * U))
    torch.testing.assert_close(log_snr(RectifiedFlow(), t), cosine, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scale", [-1.0, -0.4, 0.0, 0.81, 1.29, 2 / (math.pi - 2)])
def test_mode_is_the_published_map_from_the_other_end(scale: float) -> None:
    """Esser et al. 2024, section 3.1: t = f_mode(u), which falls; of a uniform u, 1 - u has the same law."""
    f_mode = 1 - U - scale * (torch.cos(math.pi / 2 * U) ** 2 - 1 + U)
    torch.testing.assert_close(ask(ModeHeavyTails(scale=scale), 1 - U), f_mode)
    middle, end = (density(ModeHeavyTails(scale=scale), torch.tensor([u]).double())[1] for u in (0.5, 1e-3))
    assert (middle > end) == (scale > 0) or scale == 0


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (1.5, 1.0), (2.0, 5.0), (0.5, 0.5)])
def test_beta_is_scipy_s(alpha: float, beta: float) -> None:
    t = ask(Beta(alpha=alpha, beta=beta), U)
    torch.testing.assert_close(torch.from_numpy(stats.beta(alpha, beta).cdf(t.numpy())), U)


@every_schedule
def test_log_normal_sigma_is_normal_in_log_sigma_along_every_schedule(schedule: NoiseSchedule) -> None:
    law = LogNormalSigma(mean=-0.3, std=0.9)
    t = ask(law, U, schedule)
    log_sigma = torch.log(schedule.sigma(t) / schedule.alpha(t))
    cdf = torch.from_numpy(stats.norm(-0.3, 0.9).cdf(log_sigma.numpy()))
    torch.testing.assert_close(cdf, U, rtol=1e-9, atol=0)


def test_noise_levels_out_of_reach_become_the_ends() -> None:
    from ldm.diffusion.tabulated import ScaledLinear

    t = ask(
        LogNormalSigma(mean=3.0, std=1.0), torch.tensor([0.01, 0.5, 0.9]), ScaledLinear()
    )  # it ends at 2.68
    assert t[0] < 1 and (t[1:] == 1).all()


@every_law
def test_draws_follow_the_law(law: TimeSampler) -> None:
    """A histogram of draws against the distribution function, found by inverting the quantile function."""
    t = ask(law, torch.rand(4000, generator=torch.Generator().manual_seed(0)))
    edges = ask(law, torch.linspace(0.05, 0.95, 19))  # 20 equally likely bins
    counts = torch.bincount(torch.bucketize(t, edges), minlength=20)
    assert stats.chisquare(counts.numpy()).pvalue > 0.001


def test_logit_normal_median_is_the_logistic_of_the_mean() -> None:
    median = ask(LogitNormal(mean=1.0, std=0.3), torch.tensor([0.5]))
    torch.testing.assert_close(median, torch.sigmoid(torch.tensor([1.0])))


@pytest.mark.parametrize(
    ("law", "values", "named"),
    [
        (LogitNormal, {"std": 0.0}, "std"),
        (LogNormalSigma, {"std": -1.0}, "std"),
        (ModeHeavyTails, {"scale": 1.76}, r"scale in \[-1, 1\.7519\], got scale=1\.76"),
        (ModeHeavyTails, {"scale": -1.01}, "scale"),
        (Beta, {"alpha": 0.0}, "alpha=0"),
        (Beta, {"beta": -1.0}, "beta=-1"),
    ],
)
def test_impossible_laws_are_refused(law: type, values: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        law(**values)


# --- stratified --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_stratified_covers_each_stratum_once_over_all_ranks(world_size: int) -> None:
    num_slots = 32
    u = torch.rand(num_slots, generator=torch.Generator().manual_seed(0))
    here = num_slots // world_size
    ranks = [range(rank * here, (rank + 1) * here) for rank in range(world_size)]
    sampler = Stratified(law=Uniform())
    t = torch.cat(
        [
            sampler(u[slots.start : slots.stop], slots=slots, num_slots=num_slots, schedule=RectifiedFlow())
            for slots in ranks
        ]
    )
    assert (t * num_slots).long().tolist() == list(range(num_slots))
    torch.testing.assert_close(t, ask(sampler, u), rtol=0, atol=0)  # however many ranks


@every_law
def test_stratified_keeps_the_law(law: TimeSampler) -> None:
    u = torch.full((1000,), 0.5)
    torch.testing.assert_close(
        ask(Stratified(law=law), u), ask(law, (torch.arange(1000) + 0.5) / 1000), atol=1e-5, rtol=0
    )


def test_stratified_never_rounds_up_to_the_end() -> None:
    almost_one = torch.full((4096,), 1 - 2.0**-24)
    assert ask(Stratified(law=Uniform()), almost_one).max() < 1


def test_stratified_refuses_draws_that_do_not_fit_their_slots() -> None:
    law, schedule = Stratified(law=Uniform()), RectifiedFlow()
    with pytest.raises(ValueError, match="3 draws"):
        law(torch.rand(3), slots=range(4), num_slots=4, schedule=schedule)
    with pytest.raises(ValueError, match="slots"):
        law(torch.rand(4), slots=range(2, 6), num_slots=4, schedule=schedule)
