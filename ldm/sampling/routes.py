"""Routes: from where a sampler starts, and what it must keep on its way, for each kind of editing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ldm.interfaces import Denoiser, NoiseSchedule, NoiseSource, Prediction, Sampler, StepCallback
from ldm.sampling.editing import check_strength, keeping, noised, noised_further, times_from
from ldm.sampling.noise import ImageNoise


class Route(Protocol):
    """How a batch of latents comes about."""

    def __call__(
        self,
        sampler: Sampler,
        denoise: Denoiser,
        schedule: NoiseSchedule,
        times: Tensor,
        *,
        noise: ImageNoise,
        on_step: StepCallback | None = None,
    ) -> Tensor:
        """times (num_steps + 1,) falling to 0 -> latents (B, C, H, W). ``on_step`` numbers steps along ``times``."""
        ...

    def finish(self, pictures: Tensor) -> Tensor:
        """The last touch on the decoded pictures (B, 3, fH, fW) in [-1, 1]."""
        ...


@dataclass(frozen=True)
class FromNoise:
    """The whole way, from pure noise."""

    def __call__(
        self,
        sampler: Sampler,
        denoise: Denoiser,
        schedule: NoiseSchedule,
        times: Tensor,
        *,
        noise: ImageNoise,
        on_step: StepCallback | None = None,
    ) -> Tensor:
        x = noise.start() * float(schedule.sigma(times[0]))  # (B, C, H, W)
        return sampler(denoise, schedule, x, times, noise=noise, on_step=on_step)

    def finish(self, pictures: Tensor) -> Tensor:
        return pictures


@dataclass(frozen=True, kw_only=True)
class FromPicture:
    """From a picture that is noised as far as ``strength`` says (image-to-image).

    Args:
        latents: Of the picture, (1, C, H, W).
        strength: The time to start at, in (0, 1]; the grid's nearest time is taken.
    """

    latents: Tensor
    strength: float

    def __post_init__(self) -> None:
        check_strength(self.strength)

    def __call__(
        self,
        sampler: Sampler,
        denoise: Denoiser,
        schedule: NoiseSchedule,
        times: Tensor,
        *,
        noise: ImageNoise,
        on_step: StepCallback | None = None,
    ) -> Tensor:
        rest = times_from(times, self.strength)
        x = noised(schedule, self.latents, noise.start(), float(rest[0]))  # (B, C, H, W)
        on_step = _counting_from(len(times) - len(rest), on_step)
        return sampler(denoise, schedule, x, rest, noise=noise, on_step=on_step)

    def finish(self, pictures: Tensor) -> Tensor:
        return pictures


@dataclass(frozen=True, kw_only=True)
class AroundKnown:
    """A part of the picture is given and the rest is painted to fit (inpainting).

    With ``num_passes`` above 1, RePaint's resampling (Lugmayr et al. 2022, 2201.09865, algorithm 1): the way is cut
    into stretches of ``stretch`` steps, and after each x is noised back to where the stretch began and walked again,
    so that the painted part can settle with the known one. The cost grows by the factor ``num_passes``, and a
    multistep sampler begins anew in each stretch.

    Args:
        latents: Of the whole picture, (1, C, H, W).
        free: Where it is painted anew, (1, 1, H, W) in [0, 1].
        strength: Where painting starts, in (0, 1]; below 1 something of what stood there shines through.
        num_passes: How often each stretch is walked, 1 or more.
        stretch: Steps of a stretch, 1 or more.
        pixels: The picture itself, (1, 3, fH, fW) in [-1, 1]: what is known is copied from it in the end, since an
            autoencoder changes it a little; None for no copying.
        free_pixels: Where it is not, (1, 1, fH, fW) in [0, 1].
    """

    latents: Tensor
    free: Tensor
    strength: float = 1.0
    num_passes: int = 1
    stretch: int = 1
    pixels: Tensor | None = None
    free_pixels: Tensor | None = None

    def __post_init__(self) -> None:
        check_strength(self.strength)
        if self.num_passes < 1 or self.stretch < 1:
            raise ValueError(
                f"num_passes={self.num_passes} and stretch={self.stretch} must both be at least 1"
            )
        if self.free.shape[-2:] != self.latents.shape[-2:]:
            raise ValueError(
                f"the mask covers {tuple(self.free.shape[-2:])} latents, the picture has "
                f"{tuple(self.latents.shape[-2:])}"
            )

    def __call__(
        self,
        sampler: Sampler,
        denoise: Denoiser,
        schedule: NoiseSchedule,
        times: Tensor,
        *,
        noise: ImageNoise,
        on_step: StepCallback | None = None,
    ) -> Tensor:
        rest = times_from(times, self.strength)
        skipped = len(times) - len(rest)
        # A schedule may leave a trace of the picture at t = 1; at full strength none of it may lie under the mask.
        seen = self.latents if self.strength < 1 else (1 - self.free) * self.latents
        x = noised(schedule, seen, noise.start(), float(rest[0]))  # (B, C, H, W)
        denoise = keeping(denoise, schedule, self.latents, self.free)
        if self.num_passes == 1:
            x = sampler(denoise, schedule, x, rest, noise=noise, on_step=_counting_from(skipped, on_step))
        else:
            for first in range(0, len(rest) - 1, self.stretch):
                part = rest[first : first + self.stretch + 1]
                on_part = _counting_from(skipped + first, on_step)
                for number in range(self.num_passes):
                    if number:
                        eps = noise.draw(f"back to {first} before pass {number}")
                        x = noised_further(schedule, x, eps, t_from=float(part[-1]), t_to=float(part[0]))
                    source = _named(noise, f"from {first} in pass {number}")
                    x = sampler(denoise, schedule, x, part, noise=source, on_step=on_part)
        # what is wholly known is known to the last bit, whatever the sampler made of it
        return torch.where(self.free == 0, self.latents.to(x), x)

    def finish(self, pictures: Tensor) -> Tensor:
        if self.pixels is None or self.free_pixels is None:
            return pictures
        return self.pixels + self.free_pixels * (pictures - self.pixels)


def _counting_from(first: int, on_step: StepCallback | None) -> StepCallback | None:
    """Step numbers of a part of the way -> those of the whole."""
    if on_step is None or first == 0:
        return on_step
    inner = on_step

    def on_part(step: int, x_t: Tensor, prediction: Prediction) -> None:
        inner(first + step, x_t, prediction)

    return on_part


def _named(noise: ImageNoise, name: str) -> NoiseSource:
    """Noise of its own for each stretch and pass, whose samplers all count from 0."""
    return lambda step: noise.draw(f"{name}, step {step}")
