from __future__ import annotations

import pytest
import torch

from ldm.diffusion.contrast import Contrastive
from ldm.diffusion.parameterizations import Flow
from ldm.diffusion.schedules import RectifiedFlow
from ldm.diffusion.uncertainty import Certain, LearnedUncertainty
from tests.diffusion.parts import COND, diffusion, sample, says

LEVELS = torch.linspace(-10, 10, 64)


def test_certain_changes_nothing() -> None:
    loss = torch.rand(64)
    assert Certain()(loss, LEVELS) is loss


def test_it_starts_as_the_loss_itself() -> None:
    loss = torch.rand(64)
    torch.testing.assert_close(LearnedUncertainty()(loss, LEVELS), loss, rtol=0, atol=0)


def test_it_learns_the_logarithm_of_the_loss_at_each_level() -> None:
    expected = torch.exp(2 * torch.tanh(LEVELS / 4))  # from 0.13 to 7.4
    it = LearnedUncertainty()
    optimizer = torch.optim.Adam(it.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        optimizer.zero_grad()
        noisy = expected * (0.5 + torch.rand(64, generator=generator))  # mean 1
        it(noisy, LEVELS).mean().backward()
        optimizer.step()
    torch.testing.assert_close(it.log_scale(LEVELS), expected.log(), rtol=0, atol=0.3)
    # every level now pulls alike, and the loss is near its minimum, 1 + log(expected)
    torch.testing.assert_close(it(expected, LEVELS), 1 + expected.log(), rtol=0, atol=0.05)


def test_the_minimum_over_u_is_the_logarithm() -> None:
    loss = torch.rand(64, dtype=torch.float64) + 0.1
    u = loss.log().requires_grad_()
    (slope,) = torch.autograd.grad((loss * torch.exp(-u) + u).sum(), u)
    torch.testing.assert_close(slope, torch.zeros_like(slope))


def test_infinite_levels_and_autocast_are_borne() -> None:
    it = LearnedUncertainty()
    torch.nn.init.normal_(it.weight)
    levels = torch.tensor([-torch.inf, -5.0, 5.0, torch.inf])
    plain = it(torch.ones(4), levels)
    assert plain.isfinite().all()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = it(torch.ones(4), levels)
    assert under.dtype == torch.float32
    torch.testing.assert_close(under, plain, rtol=0, atol=0)


def test_it_draws_nothing_from_the_global_generator() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    one = LearnedUncertainty()
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(one.frequencies, LearnedUncertainty().frequencies)


def test_diffusion_hands_it_the_weighted_loss_and_the_log_snr() -> None:
    it = LearnedUncertainty()
    torch.nn.init.normal_(it.weight, std=0.3)
    x0, eps, t = sample()
    plain = diffusion(RectifiedFlow(), Flow()).loss(says(x0), x0, COND, eps=eps, t=t)
    scaled = diffusion(RectifiedFlow(), Flow(), uncertainty=it).loss(says(x0), x0, COND, eps=eps, t=t)
    torch.testing.assert_close(scaled, it(plain, 2 * torch.log((1 - t) / t)))


def test_a_loss_that_may_be_negative_has_no_logarithm() -> None:
    with pytest.raises(
        ValueError, match=r"Contrastive .* LearnedUncertainty .*: use Uncontrasted or Certain"
    ):
        diffusion(RectifiedFlow(), Flow(), contrast=Contrastive(), uncertainty=LearnedUncertainty())


def test_no_features_are_refused() -> None:
    with pytest.raises(ValueError, match="num_features=0"):
        LearnedUncertainty(num_features=0)
