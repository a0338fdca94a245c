from __future__ import annotations

import pytest
import torch

from ldm.diffusion.contrast import Contrastive, Uncontrasted
from ldm.diffusion.parameterizations import Flow
from ldm.diffusion.schedules import RectifiedFlow
from ldm.diffusion.weightings import MinSNR
from ldm.interfaces import NoiseSchedule, Parameterization
from tests.diffusion.parts import COND, diffusion, every_parameterization, every_schedule, sample, says


def test_it_is_contrastive_flow_matching() -> None:
    """Stoica et al. 2025: |v - (eps - x0)|^2 - lambda |v - (eps' - x0')|^2, with the sample before as the other."""
    x0, eps, t = sample()
    output = torch.randn(x0.shape, generator=torch.Generator().manual_seed(2))
    loss = diffusion(RectifiedFlow(), Flow(), contrast=Contrastive(strength=0.05)).loss(
        says(output), x0, COND, eps=eps, t=t
    )
    for i in range(8):
        own = (output[i] - (eps[i] - x0[i])).square().mean()
        other = (output[i] - (eps[i - 1] - x0[i - 1])).square().mean()
        torch.testing.assert_close(loss[i], own - 0.05 * other)


@every_parameterization
@every_schedule
def test_the_best_output_leans_away_from_the_other_sample(
    schedule: NoiseSchedule, parameterization: Parameterization
) -> None:
    """The gradient is zero at (target - lambda * other) / (1 - lambda), under any weight."""
    x0, eps, t = sample(torch.float64)
    it = diffusion(schedule, parameterization, contrast=Contrastive(strength=0.2), weighting=MinSNR())
    time = t.reshape(-1, 1, 1, 1)
    p, q = parameterization.target_coeffs(schedule.alpha(time), schedule.sigma(time))
    target, other = p * x0 + q * eps, p * x0.roll(1, 0) + q * eps.roll(1, 0)
    output = ((target - 0.2 * other) / 0.8).requires_grad_()
    loss = it.loss(says(output), x0, COND, eps=eps, t=t)
    (gradient,) = torch.autograd.grad(loss.sum(), output)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)


def test_a_batch_of_one_has_no_other() -> None:
    x0, eps, t = (x[:1] for x in sample())
    plain, contrasted = (
        diffusion(RectifiedFlow(), Flow(), contrast=contrast).loss(says(x0), x0, COND[:1], eps=eps, t=t)
        for contrast in (Uncontrasted(), Contrastive())
    )
    assert torch.equal(plain, contrasted)


@pytest.mark.parametrize("strength", [-0.1, 1.0])
def test_a_strength_without_a_minimum_is_refused(strength: float) -> None:
    with pytest.raises(ValueError, match=f"strength={strength}"):
        Contrastive(strength=strength)
