"""The mathematics of editing: where to start, what to keep, and what lies between two pictures. Pure functions."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ldm.interfaces import Conditioning, Denoiser, NoiseSchedule, Prediction
from ldm.sampling.guidance_base import Time, alpha_sigma, moved


def check_strength(strength: float) -> None:
    """Raises ValueError outside (0, 1]."""
    if not 0 < strength <= 1:
        raise ValueError(
            f"strength={strength} must lie in (0, 1]: near 0 the picture stays, at 1 nothing of it is left"
        )


def times_from(times: Tensor, strength: float) -> Tensor:
    """The part of a grid (num_steps + 1,) that begins at its time nearest to ``strength``; at least one step.

    Image-to-image as in SDEdit (Meng et al. 2021, 2108.01073): the picture is noised to an intermediate time and
    denoised from there.

    Raises:
        ValueError: ``strength`` lies outside (0, 1].
    """
    check_strength(strength)
    first = int((times[:-1].double() - strength).abs().argmin())
    return times[first:]


def noised(schedule: NoiseSchedule, x0: Tensor, eps: Tensor, t: float) -> Tensor:
    """alpha * x0 + sigma * eps at one time for all; x0 and eps (B, C, H, W), either may be (1, C, H, W)."""
    alpha, sigma = alpha_sigma(schedule, t)
    return alpha * x0 + sigma * eps


def noised_further(schedule: NoiseSchedule, x: Tensor, eps: Tensor, *, t_from: float, t_to: float) -> Tensor:
    """x (B, C, H, W) at ``t_from`` -> at the later ``t_to``, by the noise that lies between the two.

    q(x_to | x_from) = N(r * x_from, sigma_to^2 - r^2 * sigma_from^2) with r = alpha_to / alpha_from: the step back
    of RePaint's resampling (Lugmayr et al. 2022, 2201.09865).
    """
    (alpha, sigma), (alpha_to, sigma_to) = alpha_sigma(schedule, t_from), alpha_sigma(schedule, t_to)
    ratio = alpha_to / alpha
    spread = max(sigma_to**2 - ratio**2 * sigma**2, 0.0) ** 0.5
    return ratio * x + spread * eps


def keeping(denoise: Denoiser, schedule: NoiseSchedule, known: Tensor, free: Tensor) -> Denoiser:
    """A denoiser that knows a part of the picture already: inpainting for any sampler.

    The x0 it answers with is ``free * x0 + (1 - free) * known``, and eps follows. Every sampler moves x towards x0
    and keeps its noise, so the known region of x_t is alpha * known + sigma * (its own noise) at every step: RePaint's
    known region (Lugmayr et al. 2022, 2201.09865, eq. 8a), without touching the sampler, its order or its memory.

    Args:
        denoise: Any denoiser, guided or not.
        schedule: Its schedule.
        known: x0 of the picture to keep, (1 or B, C, H, W).
        free: How far each place may change, (1 or B, 1, H, W) in [0, 1]; between the two ends both are mixed.
    """

    def denoise_the_rest(x_t: Tensor, t: Time) -> Prediction:
        answer = denoise(x_t, t)
        return moved(answer, (1 - free) * (known - answer.x0), schedule, t)

    return denoise_the_rest


def slerp(a: Tensor, b: Tensor, fraction: float) -> Tensor:
    """Spherical interpolation of two pictures' noise: a at 0, b at 1, as long as noise is in between.

    The straight line between two draws of noise is too short in its middle, by a factor of sqrt(2): a network takes
    it for less noise than t says. a, b any shape, taken as one vector each. Where they are parallel, the straight line.
    """
    cosine = (a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-12)
    angle = torch.arccos(cosine.double().clamp(-1, 1))
    if float(angle.sin()) < 1e-6:
        return torch.lerp(a, b, fraction)
    weight_a, weight_b = (float(x) for x in (((1 - fraction) * angle).sin(), (fraction * angle).sin()))
    sine = float(angle.sin())
    return (weight_a / sine) * a + (weight_b / sine) * b


def between(a: Conditioning, b: Conditioning, fractions: Tensor) -> Conditioning:
    """What lies between two prompts, row by row: a where the fraction (B,) is 0, b where it is 1.

    Tokens that both prompts have are mixed in a straight line; a token that only one has is there as it is, except at
    the other's end.
    """
    length = max(a.tokens.shape[1], b.tokens.shape[1])
    a, b = _padded(a, length), _padded(b, length)
    share = fractions.to(a.tokens)[:, None]  # (B, 1)
    in_a, in_b = a.mask & (share < 1), b.mask & (share > 0)  # (B, L)
    mixed = torch.lerp(a.tokens, b.tokens, share[..., None])
    one_sided = torch.where(in_a[..., None], a.tokens, b.tokens)
    return replace(
        a,
        tokens=torch.where((in_a & in_b)[..., None], mixed, one_sided),
        mask=in_a | in_b,
        pooled=torch.lerp(a.pooled, b.pooled, share),
    )


def _padded(cond: Conditioning, length: int) -> Conditioning:
    """With masked zeros up to ``length`` tokens."""
    missing = length - cond.tokens.shape[1]
    tokens = torch.nn.functional.pad(cond.tokens, (0, 0, 0, missing))
    return replace(cond, tokens=tokens, mask=torch.nn.functional.pad(cond.mask, (0, missing)))
