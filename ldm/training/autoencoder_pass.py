"""One pass of pictures through an autoencoder in training, and all that the terms of its loss may look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ldm import randomness
from ldm.interfaces import Batch
from ldm.nn.autoencoder_base import Autoencoder
from ldm.nn.discriminator import PatchDiscriminator
from ldm.transfer import sent


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Random numbers of a step, tied to its samples or to the step as a whole: alike on one process or eight.

    Args:
        seed: What all are derived from.
        keys: Of the batch's samples.
        visits: How often each was seen before.
        step: Of the whole step, the same for all processes and pieces: the pictures seen before it.
    """

    seed: int
    keys: Sequence[str]
    visits: Sequence[int]
    step: int

    @staticmethod
    def of(batch: Batch, *, seed: int, step: int) -> Draw:
        return Draw(seed=seed, keys=batch.keys, visits=batch.visits, step=step)

    def normal(self, shape: Sequence[int], purpose: str) -> Tensor:
        """(B, *shape), row i tied to sample i."""
        return randomness.normal(shape, self.seed, purpose, self.keys, self.visits)

    def uniform(self, purpose: str) -> Tensor:
        """(B,) from [0, 1), row i tied to sample i."""
        return randomness.uniform(self.seed, purpose, self.keys, self.visits)

    def for_all(self, purpose: str) -> float:
        """One number from [0, 1) for the whole step: for what changes the shape of a batch."""
        return float(torch.rand((), generator=randomness.generator(self.seed, purpose, self.step)))


@dataclass(frozen=True, kw_only=True)
class Pass:
    """What went through.

    Args:
        originals: (B, 3, fH, fW) in [-1, 1], the batch's pictures.
        images: (B, 3, fh, fw), what the decoder was to give: the originals, unless a disturbance changed them with
            the latents.
        moments: (B, 2C, H, W), float32, of the originals.
        latents: (B, C, H, W), a sample of the posterior, before any disturbance.
        reconstructions: (B, 3, fh, fw) about [-1, 1], float32.
        autoencoder: The network.
        draw: Random numbers of the step.
        discriminator: Where one is being trained, and has begun.
    """

    originals: Tensor
    images: Tensor
    moments: Tensor
    latents: Tensor
    reconstructions: Tensor
    autoencoder: Autoencoder
    draw: Draw
    discriminator: PatchDiscriminator | None = None


class Disturbance(Protocol):
    """What happens to latents on their way into the decoder, in training only."""

    def __call__(self, images: Tensor, latents: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        """images (B, 3, fH, fW), latents (B, C, H, W) -> both as the decoder shall see and give them."""
        ...


class AutoencoderTerm(Protocol):
    weight: float

    def __call__(self, seen: Pass) -> Tensor:
        """A scalar, not yet weighted."""
        ...


@runtime_checkable
class Particular(Protocol):
    """A term that does not go with every autoencoder."""

    def check(self, autoencoder: Autoencoder, *, has_discriminator: bool) -> None:
        """Raises ValueError where it does not go with this one."""
        ...


@runtime_checkable
class HasTrained(Protocol):
    """A term with weights that are trained with the autoencoder's, by its optimizer."""

    def trained(self) -> nn.Module: ...


def run(
    autoencoder: Autoencoder,
    images: Tensor,
    draw: Draw,
    *,
    disturbances: Mapping[str, Disturbance],
    discriminator: PatchDiscriminator | None = None,
) -> Pass:
    """Pictures (B, 3, fH, fW) in [-1, 1] through encoder, posterior, disturbances and decoder."""
    moments = autoencoder.encode(images)  # (B, 2C, H, W)
    mean, log_var = moments.chunk(2, dim=1)
    noise = sent(draw.normal(mean.shape[1:], "posterior"), mean.device).to(mean.dtype)
    latents = mean + torch.exp(0.5 * log_var) * noise
    wanted, shown = images, latents
    for disturbance in disturbances.values():
        wanted, shown = disturbance(wanted, shown, draw)
    return Pass(
        originals=images,
        images=wanted,
        moments=moments,
        latents=latents,
        reconstructions=autoencoder.decode(shown),
        autoencoder=autoencoder,
        draw=draw,
        discriminator=discriminator,
    )


def run_means(autoencoder: Autoencoder, images: Tensor, draw: Draw) -> Pass:
    """The same without noise and disturbances: what validation looks at. Reconstructions are clipped to [-1, 1]."""
    moments = autoencoder.encode(images)
    mean, _ = moments.chunk(2, dim=1)
    return Pass(
        originals=images,
        images=images,
        moments=moments,
        latents=mean,
        reconstructions=autoencoder.decode(mean).clamp(-1.0, 1.0),
        autoencoder=autoencoder,
        draw=draw,
    )


def weighted_sum(terms: Mapping[str, AutoencoderTerm], values: Mapping[str, Tensor]) -> Tensor:
    """The loss: the sum of the terms' values times their weights."""
    return torch.stack([terms[name].weight * value for name, value in values.items()]).sum()


def modules_among(parts: Mapping[str, object]) -> nn.ModuleDict:
    """Those that have weights."""
    return nn.ModuleDict({name: part for name, part in parts.items() if isinstance(part, nn.Module)})
