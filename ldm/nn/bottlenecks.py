"""What stands between encoder and decoder: which latents there can be, and how many bits a latent carries.

A bottleneck in a config is a recipe of plain numbers; an autoencoder builds the layer of it for its own channels. A
layer says what the encoder's output means as moments, and what the decoder is given of latents. Discrete ones hand out
latents from before they are rounded, and round on the way into the decoder (as 2112.10752 does for its VQ latents):
posteriors, statistics, caches and denoisers then know continuous latents only, whatever the bottleneck.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ldm.nn.vector_quantizer import Sum, VectorQuantizer


class BottleneckLayer(nn.Module, ABC):
    """Between the encoder's last and the decoder's first layer."""

    def __init__(self, *, encoder_channels: int) -> None:
        super().__init__()
        self.encoder_channels = encoder_channels  # how many the encoder must give

    @abstractmethod
    def moments(self, h: Tensor) -> Tensor:
        """The encoder's output (B, encoder_channels, H, W), float32 -> moments (B, 2C, H, W)."""

    def enter(self, latents: Tensor) -> Tensor:
        """latents (B, C, H, W) -> what the decoder sees of them, same shape; gradients go through."""
        return latents

    def figures(self, latents: Tensor) -> dict[str, Tensor]:
        """Numbers to watch, by name, of latents (B, C, H, W) of a batch."""
        return {}

    # What a bottleneck learns without a gradient: ``see`` at each piece of a step, then ``settle`` or ``forget`` once.

    def see(self, latents: Tensor) -> None:
        """Note latents (B, C, H, W) of a training step; nothing changes yet."""

    def forget(self) -> None:
        """The step is not made."""

    def settle(self, total: Sum) -> None:
        """Learn from what the step has seen; ``total`` sums a tensor over all processes."""


class Bottleneck(Protocol):
    """The recipe: a frozen dataclass of plain numbers."""

    def build(self, channels: int) -> nn.Module:
        """The layer for latents of so many channels: a ``BottleneckLayer``, or a module with the same methods."""
        ...


def without_variance(mean: Tensor) -> Tensor:
    """mean (B, C, H, W) -> moments (B, 2C, H, W) whose log-variance is -30: a posterior without any spread."""
    return torch.cat([mean, torch.full_like(mean, -30.0)], dim=1)


@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """A normal posterior whose mean and variance the encoder says (1312.6114). Goes with the term ``KLDivergence``."""

    def build(self, channels: int) -> BottleneckLayer:
        return GaussianLayer(encoder_channels=2 * channels)


class GaussianLayer(BottleneckLayer):
    """Moments as the encoder gives them, log-variances in [-30, 20]."""

    def moments(self, h: Tensor) -> Tensor:
        mean, log_var = h.chunk(2, dim=1)
        return torch.cat([mean, log_var.clamp(-30.0, 20.0)], dim=1)


@dataclass(frozen=True, kw_only=True)
class Deterministic:
    """Latents are what the encoder says."""

    def build(self, channels: int) -> BottleneckLayer:
        return DeterministicLayer(encoder_channels=channels)


class DeterministicLayer(BottleneckLayer):
    """A posterior without spread."""

    def moments(self, h: Tensor) -> Tensor:
        return without_variance(h)


@dataclass(frozen=True, kw_only=True)
class FixedNoise:
    """Noise of one strength on bounded latents, and no KL term: an additive-noise channel.

    A latent value in [-bound, bound] under noise of this standard deviation carries at most about
    log2(bound / (2 std)) bits, the law of Shannon 1948; without a bound the encoder would outgrow the noise.

    Args:
        std: Standard deviation of the noise.
        bound: Largest magnitude of a mean, by a tanh.
    """

    std: float = 0.1
    bound: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.std < self.bound:
            raise ValueError(f"FixedNoise: std={self.std} must lie between 0 and bound={self.bound}")

    def build(self, channels: int) -> BottleneckLayer:
        return FixedNoiseLayer(channels, std=self.std, bound=self.bound)


class FixedNoiseLayer(BottleneckLayer):
    """A bounded mean, and the same log-variance everywhere."""

    def __init__(self, channels: int, *, std: float, bound: float) -> None:
        super().__init__(encoder_channels=channels)
        self.log_var, self.bound = 2 * math.log(std), bound

    def moments(self, h: Tensor) -> Tensor:
        mean = self.bound * torch.tanh(h / self.bound)
        return torch.cat([mean, torch.full_like(mean, self.log_var)], dim=1)


@dataclass(frozen=True, kw_only=True)
class FSQ:
    """Finite scalar quantisation (2309.15505): each channel is rounded to a few levels. No codebook, no extra loss.

    Args:
        levels: Of each channel, as many numbers as the latents have channels; their product is the number of codes.

    Raises:
        ValueError: Fewer than two levels somewhere, or their number is not that of the channels.
    """

    levels: Sequence[int]

    def __post_init__(self) -> None:
        if not self.levels or min(self.levels) < 2:
            raise ValueError(f"FSQ: levels={list(self.levels)} must be 2 or more in every channel")

    def build(self, channels: int) -> BottleneckLayer:
        if len(self.levels) != channels:
            raise ValueError(
                f"FSQ: levels={list(self.levels)} are {len(self.levels)} and the latents have {channels} channels: "
                f"give one number for each"
            )
        return FSQLayer(self.levels)


class FSQLayer(BottleneckLayer):
    """Latents in about [-1, 1] before rounding; the decoder sees multiples of 1 / (levels // 2)."""

    levels: Tensor
    halves: Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__(encoder_channels=len(levels))
        counts = torch.tensor(levels, dtype=torch.float32)[:, None, None]  # (C, 1, 1)
        self.num_codes = math.prod(levels)
        self.register_buffer("levels", counts, persistent=False)
        self.register_buffer("halves", counts.div(2, rounding_mode="floor"), persistent=False)

    def moments(self, h: Tensor) -> Tensor:
        """Section 3.1: a tanh onto as many units as there are levels, moved by half a unit where they are even."""
        reach = (self.levels - 1) * (1 + 1e-3) / 2
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)
        bounded = torch.tanh(h + torch.atanh(offset / reach)) * reach - offset
        return without_variance(bounded / self.halves)

    def enter(self, latents: Tensor) -> Tensor:
        rounded = self.steps(latents) / self.halves
        return latents + (rounded - latents).detach()  # straight through (1308.3432)

    def steps(self, latents: Tensor) -> Tensor:
        """latents (B, C, H, W) -> whole numbers from -(levels // 2) on; what a denoiser overshoots is brought back."""
        lowest = -self.halves
        return torch.minimum(torch.maximum((latents * self.halves).round(), lowest), lowest + self.levels - 1)

    def codes(self, latents: Tensor) -> Tensor:
        """latents (B, C, H, W) -> (B, H, W) int64, the number of each position's code."""
        digits = (self.steps(latents) + self.halves).long()
        places = torch.cumprod(torch.cat([torch.ones_like(self.levels[:1]), self.levels[:-1]]), dim=0)
        return (digits * places.long()).sum(dim=1)

    def figures(self, latents: Tensor) -> dict[str, Tensor]:
        return usage(self.codes(latents), self.num_codes)


@dataclass(frozen=True, kw_only=True)
class VQ:
    """Vector quantisation (1711.00937): each position is replaced by the nearest of ``num_codes`` vectors.

    Goes with the term ``CodebookLoss``, which draws encoder and codebook together.

    Args:
        num_codes: K.
        decay: Of the codebook as a running mean of the latents that chose each code (appendix A.1), per step; null
            trains the codebook by the term's gradient.
        revive_below: A running-mean codebook's code that is chosen less than this often per step is put beside one that
            is chosen often.
    """

    num_codes: int
    decay: float | None = 0.99
    revive_below: float = 0.01

    def __post_init__(self) -> None:
        if self.num_codes < 2 or not (self.decay is None or 0 < self.decay < 1):
            raise ValueError(
                f"VQ: num_codes={self.num_codes} must be 2 or more, decay={self.decay} in (0, 1) or null"
            )

    def build(self, channels: int) -> BottleneckLayer:
        return VQLayer(self, channels)


class VQLayer(BottleneckLayer):
    """Latents before they are replaced; the decoder sees codes."""

    def __init__(self, recipe: VQ, channels: int) -> None:
        super().__init__(encoder_channels=channels)
        self.quantizer = VectorQuantizer(
            num_codes=recipe.num_codes,
            width=channels,
            decay=recipe.decay,
            revive_below=recipe.revive_below,
        )

    def moments(self, h: Tensor) -> Tensor:
        return without_variance(h)

    def enter(self, latents: Tensor) -> Tensor:
        nearest = self.quantizer(latents)
        return latents + (nearest - latents).detach()  # straight through (1308.3432)

    def figures(self, latents: Tensor) -> dict[str, Tensor]:
        return usage(self.quantizer.codes(latents), self.quantizer.num_codes)

    def see(self, latents: Tensor) -> None:
        self.quantizer.see(latents)

    def forget(self) -> None:
        self.quantizer.forget()

    def settle(self, total: Sum) -> None:
        self.quantizer.settle(total)


def usage(codes: Tensor, num_codes: int) -> dict[str, Tensor]:
    """Of one batch's codes: the share of all codes that occur, and the perplexity, the exponential of their entropy."""
    shares = torch.bincount(codes.flatten(), minlength=num_codes).float() / codes.numel()
    entropy = -(shares * shares.clamp(min=1e-12).log()).sum()
    return {"codes_used": (shares > 0).float().mean(), "code_perplexity": entropy.exp()}


BOTTLENECKS: dict[str, type[Any]] = {
    kind.__name__: kind for kind in (Gaussian, Deterministic, FixedNoise, FSQ, VQ)
}


def describe_bottleneck(bottleneck: Bottleneck) -> dict[str, Any]:
    """Plain data that ``bottleneck_from`` makes the recipe of again."""
    return {"is": type(bottleneck).__name__, **asdict(bottleneck)}  # type: ignore[call-overload]


def bottleneck_from(described: dict[str, Any]) -> Bottleneck:
    """
    Raises:
        ValueError: It names a bottleneck that is not known here.
    """
    arguments = dict(described)
    name = arguments.pop("is")
    if name not in BOTTLENECKS:
        raise ValueError(f"bottleneck {name!r} is not known here: {', '.join(BOTTLENECKS)} are")
    built: Bottleneck = BOTTLENECKS[name](**arguments)
    return built
