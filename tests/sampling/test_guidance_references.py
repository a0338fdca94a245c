"""Rescaling, APG and CFG-Zero* against diffusers' own, step by step, and laws of their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.diffusion.diffusion import Diffusion
from ldm.diffusion.parameterizations import X0, Flow
from ldm.diffusion.schedules import Cosine, RectifiedFlow, VPLinear
from ldm.diffusion.time_samplers import Uniform
from ldm.diffusion.weightings import Unweighted
from ldm.interfaces import Conditioning, NoiseSchedule
from ldm.sampling.guidance import ClassifierFree
from ldm.sampling.guidance_projected import APG, along
from ldm.sampling.guidance_zero_star import CFGZeroStar
from ldm.sampling.samplers import Euler
from tests.sampling.oracles import no_noise

SHAPE = (2, 4, 5, 6)
TIMES = [0.9, 0.7, 0.5, 0.2]


def answer(t: float, prompt: bool) -> Tensor:
    """What a network might say, another thing at each time: (2, 4, 5, 6)."""
    generator = torch.Generator().manual_seed(round(t * 1000) + prompt)
    return torch.randn(SHAPE, generator=generator) + 0.3


def scripted(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
    """A network that says ``answer``, to each row of a batch or of a doubled one as its condition is."""
    said = [answer(float(t[0]), prompt).repeat(len(x) // 2, 1, 1, 1) for prompt in (True, False)]
    return torch.where(cond.mask[:, :1, None, None], *said)


def conditioning(prompt: bool) -> Conditioning:
    return Conditioning(
        tokens=torch.zeros(2, 1, 1), mask=torch.full((2, 1), prompt), pooled=torch.zeros(2, 1)
    )


def guided(guidance: Any, parameterization: Any, schedule: NoiseSchedule | None = None) -> Any:
    """The scripted network, guided."""
    it = Diffusion(
        schedule=schedule or RectifiedFlow(),
        parameterization=parameterization,
        time_sampler=Uniform(),
        weighting=Unweighted(),
    )
    return guidance(it, scripted, conditioning(True), conditioning(False))


X_T = torch.randn(SHAPE, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("rescale", [0.0, 0.7, 1.0])
def test_rescale_is_diffusers_rescale_noise_cfg_on_x0(rescale: float) -> None:
    utilities = pytest.importorskip("diffusers.guiders.guider_utils")
    denoise = guided(ClassifierFree(scale=4.0, rescale=rescale), X0(), VPLinear())
    for t in TIMES:
        cond, uncond = answer(t, True), answer(t, False)
        wanted = utilities.rescale_noise_cfg(uncond + 4.0 * (cond - uncond), cond, rescale)
        torch.testing.assert_close(denoise(X_T, t).x0, wanted, rtol=1e-5, atol=1e-5)


def test_rescale_on_x0_and_on_the_velocity_agree_in_pure_noise() -> None:
    """v = eps - x0 = x_t - x0 at t = 1 of the rectified flow has no part of eps that guidance changes."""
    denoise = guided(ClassifierFree(scale=4.0, rescale=1.0), Flow())
    x0 = denoise(torch.zeros(SHAPE), 1.0).x0  # where x_t is 0, x0 = -v
    v_cond, v_uncond = answer(1.0, True), answer(1.0, False)
    v = v_uncond + 4.0 * (v_cond - v_uncond)
    spread = v_cond.flatten(1).std(1) / v.flatten(1).std(1)
    torch.testing.assert_close(x0, -v * spread[:, None, None, None], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("momentum", [0.0, -0.5, 0.4])
@pytest.mark.parametrize("norm_threshold", [None, 3.0, 50.0])
@pytest.mark.parametrize("parallel", [0.0, 0.3, 1.0])
def test_apg_is_diffusers_normalized_guidance_step_by_step(
    parallel: float, norm_threshold: float | None, momentum: float
) -> None:
    reference = pytest.importorskip("diffusers.guiders.adaptive_projected_guidance")
    apg = APG(scale=5.0, parallel=parallel, norm_threshold=norm_threshold, momentum=momentum)
    denoise = guided(apg, X0(), VPLinear())
    buffer = reference.MomentumBuffer(momentum)
    for t in TIMES:
        # Theirs adds scale * update to the conditional answer in its "original formulation", where the paper adds
        # (scale - 1) * update, and to the unconditional one by default, which drops its part along the picture.
        wanted = reference.normalized_guidance(
            answer(t, True),
            answer(t, False),
            guidance_scale=5.0 - 1,
            momentum_buffer=buffer,
            eta=parallel,
            norm_threshold=norm_threshold or 0.0,
            use_original_formulation=True,
        )
        torch.testing.assert_close(denoise(X_T, t).x0, wanted, rtol=1e-4, atol=1e-4)


def test_apg_remembers_within_one_walk_only() -> None:
    it = Diffusion(schedule=VPLinear(), parameterization=X0(), time_sampler=Uniform(), weighting=Unweighted())
    apg = APG(scale=5.0, momentum=-0.5)
    walks = [apg(it, scripted, conditioning(True), conditioning(False)) for _ in range(2)]
    first, second = ([walk(X_T, t).x0 for t in TIMES] for walk in walks)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(walks[0](X_T, TIMES[0]).x0, first[0])  # a walk that goes on remembers


def test_apg_with_everything_kept_is_classifier_free() -> None:
    apg = guided(APG(scale=5.0, parallel=1.0, momentum=0.0), Flow())
    plain = guided(ClassifierFree(scale=5.0), Flow())
    for t in TIMES:
        for a, b in zip(apg(X_T, t), plain(X_T, t), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_apg_leaves_the_length_along_the_picture_alone() -> None:
    denoise = guided(APG(scale=9.0, momentum=0.0), X0(), VPLinear())
    for t in TIMES:
        cond = answer(t, True)
        torch.testing.assert_close(along(denoise(X_T, t).x0, cond), cond, rtol=1e-4, atol=1e-4)


def test_the_optimized_scale_is_diffusers() -> None:
    reference = pytest.importorskip("diffusers.guiders.classifier_free_zero_star_guidance")
    denoise = guided(CFGZeroStar(scale=4.0, zero_init=0.0), Flow())
    for t in [1.0, *TIMES]:
        cond, uncond = answer(t, True), answer(t, False)
        fitted = reference.cfg_zero_star_scale(cond.flatten(1), uncond.flatten(1))[..., None, None] * uncond
        prediction = denoise(X_T, t)
        velocity = prediction.eps - prediction.x0
        torch.testing.assert_close(velocity, fitted + 4.0 * (cond - fitted), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("schedule", [RectifiedFlow(), Cosine(), VPLinear()], ids=lambda s: type(s).__name__)
def test_the_first_steps_are_held_and_ask_no_network(schedule: NoiseSchedule) -> None:
    """x / (alpha + sigma) stands still: on the rectified flow, where alpha + sigma = 1, x itself."""
    it = Diffusion(schedule=schedule, parameterization=Flow(), time_sampler=Uniform(), weighting=Unweighted())

    def network(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        assert float(t[0]) < 0.85, "asked while held"
        return torch.zeros_like(x)

    denoise = CFGZeroStar(scale=3.0, zero_init=0.2)(it, network, conditioning(True), conditioning(False))
    times = torch.tensor([1.0, 0.95, 0.9, 0.8])
    x = Euler()(denoise, schedule, X_T, times, noise=no_noise)
    total = (schedule.alpha(times) + schedule.sigma(times))[[0, -1]]
    torch.testing.assert_close(x / total[1], X_T / total[0], rtol=1e-5, atol=1e-5)
    denoise(X_T, 0.8)  # at 1 - zero_init itself the network is asked again


def test_the_same_answer_twice_has_nothing_to_fit_or_guide() -> None:
    it = Diffusion(
        schedule=RectifiedFlow(), parameterization=Flow(), time_sampler=Uniform(), weighting=Unweighted()
    )
    denoise = CFGZeroStar(scale=7.0)(it, scripted, conditioning(True), conditioning(True))
    plain = it.denoiser(scripted, conditioning(True))
    for a, b in zip(denoise(X_T, 0.5), plain(X_T, 0.5), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
