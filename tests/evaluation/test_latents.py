"""The report on latents where every number is known beforehand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.evaluation.latents import Equivariance, Posterior, Robustness, channels, spectrum

CPU = torch.device("cpu")


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Codec(nn.Module):
    """Mean colours of squares of two pixels, three times as large and moved by one; ``warp`` spoils pictures."""

    content_hash = "codec"
    downsample = 2
    log_var = -1.0

    def __init__(self, warp=lambda x: x) -> None:
        super().__init__()
        self.warp = warp

    def moments(self, images: Tensor) -> Tensor:
        mean = 3 * F.avg_pool2d(self.warp(images), 2) + 1
        return torch.cat([mean, torch.full_like(mean, self.log_var)], dim=1)

    def latents(self, moments: Tensor, *, noise: Tensor | None) -> Tensor:
        return (moments[:, :3] - 1) / 3

    def decode(self, latents: Tensor) -> Tensor:
        return latents.repeat_interleave(2, 2).repeat_interleave(2, 3)


def pictures(side: int = 16) -> Tensor:
    return torch.randint(
        0, 256, (5, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def test_posteriors_are_normalised_with_their_variance() -> None:
    codec = Codec()
    found = Posterior().open(device=CPU, codecs=lambda path: codec)(pictures())  # type: ignore[arg-type,return-value]
    mean, log_var = found.chunk(2, dim=1)
    torch.testing.assert_close(mean, F.avg_pool2d(pictures().float() / 127.5 - 1, 2))
    torch.testing.assert_close(log_var.exp(), torch.full_like(mean, torch.tensor(-1.0).exp() / 9))


def test_channels_of_known_laws() -> None:
    """A Gaussian, a two-valued one (kurtosis -2), a heavy-tailed one, and one that is noise of its own alone."""
    n = (4000, 1, 4, 4)
    means = torch.cat(
        [2 + draws(*n), draws(*n, seed=1).sign(), draws(*n, seed=2) ** 3, 0.1 * draws(*n, seed=3)], dim=1
    )
    log_var = torch.full_like(means, -30.0)
    log_var[:, 3] = 0.0
    found = channels(torch.cat([means, log_var], dim=1))
    assert found.mean[0] == pytest.approx(2, abs=0.02) and found.std[0] == pytest.approx(1, abs=0.02)
    assert found.kurtosis[0] == pytest.approx(0, abs=0.1)
    assert found.kurtosis[1] == pytest.approx(-2, abs=0.01)
    assert found.kurtosis[2] > 10
    assert found.kurtosis[3] == pytest.approx(0, abs=0.1), "a Gaussian posterior of one width is Gaussian"
    assert found.carried[3] == pytest.approx(0.01 / 1.01, rel=0.05)
    assert found.collapsed.tolist() == [False, False, False, True]


def test_the_spectrum_of_white_noise_is_flat_and_of_a_wave_one_line() -> None:
    white = spectrum(draws(200, 3, 32, 32))
    torch.testing.assert_close(white.power, torch.ones_like(white.power), rtol=0.05, atol=0)
    assert white.share_above(0.5) == pytest.approx(
        0.75, abs=0.03
    )  # of rings up to 1, the area outside of 1/2
    place = torch.arange(32).double()
    wave = torch.cos(2 * torch.pi * 4 * place / 32).expand(1, 1, 32, 32)  # 4 of 16: a quarter of the highest
    line = spectrum(wave)
    assert float(line.frequency[line.power.argmax()]) == pytest.approx(0.25, abs=0.04)
    assert line.share_above(0.5) < 1e-12


def test_means_of_squares_are_equivariant_and_a_slanted_one_is_not() -> None:
    def found(codec: Codec, side: int = 16) -> Tensor:
        return Equivariance().open(device=CPU, codecs=lambda path: codec)(pictures(side))  # type: ignore[arg-type,return-value]

    torch.testing.assert_close(found(Codec()), torch.zeros(5, 2), rtol=0, atol=1e-10)
    slope = torch.linspace(-1, 1, 16).view(1, 1, 1, 16)
    assert bool((found(Codec(lambda x: x * slope[..., : x.shape[-1]]))[:, 1] > 0.1).all())
    odd = found(Codec(), side=18)
    assert bool(odd[:, 0].isnan().all()) and bool(odd[:, 1].isfinite().all())


def test_noise_on_latents_costs_what_a_linear_decoder_says() -> None:
    """The decoder repeats latents: noise of deviation s adds s^2 to the squared error of pictures in [-1, 1]."""
    smooth = pictures(8).float().repeat_interleave(2, 2).repeat_interleave(2, 3).mul(0.4).add(77).round()
    smooth = smooth.to(torch.uint8)  # far enough from black and white, where nothing is clipped
    found = Robustness(strengths=(0.0, 0.05)).open(device=CPU, codecs=lambda path: Codec())(smooth)  # type: ignore[arg-type,return-value]
    assert bool((found[:, 0] == 100).all())
    assert float(found[:, 1].mean()) == pytest.approx(-10 * math.log10(0.05**2 / 4), abs=0.7)
