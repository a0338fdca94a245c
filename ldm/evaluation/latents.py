"""What a latent space is like to train a denoiser on: channels, spectrum, equivariance, robustness of the decoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.evaluation.features import Codecs, Features
from ldm.evaluation.quality import psnr
from ldm.needs import Need
from ldm.randomness import generator

CARRIES = 0.1  # a channel that carries less of its own variance has collapsed


@dataclass(frozen=True, kw_only=True)
class _OfCodec:
    """Base of what is looked at through the run's own autoencoder."""

    title: str = ""
    resizing: str = "none"

    def needs(self) -> list[Need]:
        return []


@dataclass(frozen=True, kw_only=True)
class Posterior(_OfCodec):
    """Mean and log-variance of the posterior, (B, 2C, H, W) float32, the mean normalised as denoisers see it."""

    label: str = "posterior"

    def open(self, *, device: torch.device, codecs: Codecs) -> Features:
        codec = codecs(None)

        def run(images: Tensor) -> Tensor:
            moments = codec.moments(images.to(device).float() / 127.5 - 1)
            mean = codec.latents(moments, noise=None)
            zeros = torch.zeros_like(mean)
            shift = codec.latents(torch.cat([zeros, zeros], dim=1), noise=None)  # of a latent of zeros
            unit = codec.latents(torch.cat([torch.ones_like(mean), zeros], dim=1), noise=None) - shift
            log_var = moments.float().chunk(2, dim=1)[1] + 2 * unit.log()
            return torch.cat([mean, log_var], dim=1).cpu()

        return Features(codec.content_hash, f"posterior {self.resizing}", run)


@dataclass(frozen=True, kw_only=True)
class Equivariance(_OfCodec):
    """How far encoding and moving a picture are from moving and encoding: (B, 2) for half the size and a quarter turn.

    |E(Tx) - T E(x)|^2 over |E(Tx)|^2, of normalised latents (EQ-VAE: Kouzelis et al. 2025, 2502.09509, section 3.2,
    compares in pictures). NaN for half the size of pictures that the stride does not divide then.
    """

    label: str = "equivariance"

    def open(self, *, device: torch.device, codecs: Codecs) -> Features:
        codec = codecs(None)

        def encode(x: Tensor) -> Tensor:
            return codec.latents(codec.moments(x), noise=None)

        def run(images: Tensor) -> Tensor:
            x = images.to(device).float() / 127.5 - 1
            z = encode(x)
            turned = relative_error(encode(x.rot90(dims=(2, 3))), z.rot90(dims=(2, 3)))
            if any(side % (2 * codec.downsample) for side in x.shape[-2:]):
                halved = torch.full_like(turned, torch.nan)
            else:
                halved = relative_error(encode(F.avg_pool2d(x, 2)), F.avg_pool2d(z, 2))
            return torch.stack([halved, turned], dim=1).cpu()

        return Features(codec.content_hash, f"equivariance {self.resizing}", run)


@dataclass(frozen=True, kw_only=True)
class Robustness(_OfCodec):
    """PSNR in dB of what is decoded from latents with noise: (B, K), one for each strength.

    Args:
        strengths: Standard deviations of the noise; latents have 1.
    """

    strengths: tuple[float, ...] = (0.0, 0.05, 0.1, 0.2, 0.4)
    label: str = "robustness"

    def open(self, *, device: torch.device, codecs: Codecs) -> Features:
        codec = codecs(None)

        def run(images: Tensor) -> Tensor:
            z = codec.latents(codec.moments(images.to(device).float() / 127.5 - 1), noise=None)
            # The same noise for every picture and every autoencoder of this shape.
            noise = torch.randn(z.shape[1:], generator=generator("evaluation", "latent noise")).to(device)
            decoded = [codec.decode(z + strength * noise) for strength in self.strengths]
            made = [((one.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu() for one in decoded]
            return torch.stack([psnr(images, one) for one in made], dim=1)

        return Features(codec.content_hash, f"robustness {self.strengths}", run)


def relative_error(found: Tensor, known: Tensor) -> Tensor:
    """|found - known|^2 / |found|^2 of each row, (B, ...) -> (B,)."""
    error = (found - known).flatten(1).square().sum(dim=1)
    return error / found.flatten(1).square().sum(dim=1).clamp(min=1e-12)


@dataclass(frozen=True)
class Channels:
    """Of each channel, (C,)."""

    mean: Tensor
    std: Tensor  # of draws from the posterior, over pictures and places
    kurtosis: Tensor  # excess: 0 for a Gaussian
    carried: Tensor  # share of the variance that is between pictures and places, not the posterior's own

    @property
    def collapsed(self) -> Tensor:
        """(C,) bool: the channel is little else than noise."""
        return self.carried < CARRIES


def channels(moments: Tensor) -> Channels:
    """moments (N, 2C, H, W), as ``Posterior`` tells them."""
    mean, log_var = moments.double().chunk(2, dim=1)
    own = log_var.exp().mean(dim=(0, 2, 3))
    centre = mean.mean(dim=(0, 2, 3))
    x = mean - centre.view(-1, 1, 1)
    between = x.square().mean(dim=(0, 2, 3))
    # The fourth moment of a Gaussian mixture of these means and variances.
    v = log_var.exp()
    fourth = (x**4 + 6 * x.square() * v + 3 * v.square()).mean(dim=(0, 2, 3))
    total = (between + own).clamp(min=1e-30)
    return Channels(centre, total.sqrt(), fourth / total.square() - 3, between / total)


@dataclass(frozen=True)
class Spectrum:
    """Power by frequency."""

    frequency: Tensor  # (K,) shares of the highest there is, middles of bins
    power: Tensor  # (K,) mean over waves in the bin, 1 for white noise of the same variance

    def share_above(self, share: float) -> float:
        """The share of the variance in frequencies above ``share`` of the highest one, counted by bins."""
        weight = self.power * self.frequency  # waves in a ring are as many as it is wide
        return float(weight[self.frequency > share].sum() / weight.sum())


def spectrum(x: Tensor, *, bins: int = 16) -> Spectrum:
    """The spectrum of pictures or latents (N, C, H, W), averaged over all of them and over directions.

    Along a side frequencies end at half a wave a pixel, which is 1 here; corners beyond it are left out.
    """
    x = x.double()
    x = x - x.mean(dim=(2, 3), keepdim=True)
    height, width = x.shape[-2:]
    power = torch.fft.fft2(x).abs().square().mean(dim=(0, 1)) / (height * width)  # (H, W)
    fy, fx = torch.fft.fftfreq(height).double()[:, None], torch.fft.fftfreq(width).double()[None]
    radius = 2 * (fy.square() + fx.square()).sqrt()
    bins = min(bins, min(height, width) // 2)
    places = (radius * bins).long().flatten()
    places[(radius > 1).flatten()] = bins  # of its own, left away below
    places = places.clamp(max=bins)
    inside = (places < bins) & (radius.flatten() > 0)
    sums, counts = torch.zeros(bins).double(), torch.zeros(bins).double()
    sums.index_add_(0, places[inside], power.flatten()[inside])
    counts.index_add_(0, places[inside], torch.ones(int(inside.sum())).double())
    held = counts > 0
    middles = (torch.arange(bins).double() + 0.5) / bins
    found = (sums[held] / counts[held]) / x.square().mean().clamp(min=1e-30)
    return Spectrum(middles[held], found)
