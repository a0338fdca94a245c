from __future__ import annotations

import pytest
import torch
from scipy import stats

from ldm.diffusion.time_samplers import LogitNormal, Stratified, Uniform
from ldm.interfaces import TimeSampler

LAWS = [Uniform(), LogitNormal(), LogitNormal(mean=-0.7, std=1.6)]


def ask(law: TimeSampler, u: torch.Tensor) -> torch.Tensor:
    return law(u, slots=range(len(u)), num_slots=len(u))


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_quantile_functions_rise_within_0_and_1(law: TimeSampler) -> None:
    t = ask(law, torch.linspace(1e-4, 1 - 1e-4, 1001))
    assert (t.diff() > 0).all()
    assert t.min() > 0 and t.max() < 1


@pytest.mark.parametrize("law", [Uniform(), LogitNormal()], ids=str)
def test_symmetric_laws_are_symmetric(law: TimeSampler) -> None:
    u = torch.linspace(0.001, 0.999, 101)
    torch.testing.assert_close(ask(law, u), 1 - ask(law, 1 - u), atol=1e-5, rtol=0)


@pytest.mark.parametrize("law", [LogitNormal(), LogitNormal(mean=-0.7, std=1.6)], ids=str)
def test_logit_normal_is_normal_in_the_logit(law: LogitNormal) -> None:
    t = ask(law, torch.rand(5000, generator=torch.Generator().manual_seed(0)))
    result = stats.kstest(torch.logit(t).numpy(), stats.norm(law.mean, law.std).cdf)
    assert result.pvalue > 0.01


def test_logit_normal_median_is_the_logistic_of_the_mean() -> None:
    median = ask(LogitNormal(mean=1.0, std=0.3), torch.tensor([0.5]))
    torch.testing.assert_close(median, torch.sigmoid(torch.tensor([1.0])))


def test_logit_normal_refuses_a_width_of_zero() -> None:
    with pytest.raises(ValueError, match="std"):
        LogitNormal(std=0.0)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_stratified_covers_each_stratum_once_over_all_ranks(world_size: int) -> None:
    num_slots = 32
    u = torch.rand(num_slots, generator=torch.Generator().manual_seed(0))
    here = num_slots // world_size
    ranks = [range(rank * here, (rank + 1) * here) for rank in range(world_size)]
    sampler = Stratified(law=Uniform())
    t = torch.cat([sampler(u[slots.start : slots.stop], slots=slots, num_slots=num_slots) for slots in ranks])
    assert (t * num_slots).long().tolist() == list(range(num_slots))
    torch.testing.assert_close(t, ask(sampler, u), rtol=0, atol=0)  # however many ranks


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_stratified_keeps_the_law(law: TimeSampler) -> None:
    u = torch.full((1000,), 0.5)
    torch.testing.assert_close(
        ask(Stratified(law=law), u), ask(law, (torch.arange(1000) + 0.5) / 1000), atol=1e-5, rtol=0
    )


def test_stratified_refuses_draws_that_do_not_fit_their_slots() -> None:
    with pytest.raises(ValueError, match="3 draws"):
        Stratified(law=Uniform())(torch.rand(3), slots=range(4), num_slots=4)
    with pytest.raises(ValueError, match="slots"):
        Stratified(law=Uniform())(torch.rand(4), slots=range(2, 6), num_slots=4)
