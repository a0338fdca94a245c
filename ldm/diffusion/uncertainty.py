"""The last step of a loss: bringing noise levels of very different difficulty to one scale."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ldm.diffusion.schedules import at_least_float32


@dataclass(frozen=True)
class Certain:
    """The weighted squared error as it is."""

    def __call__(self, loss: Tensor, log_snr: Tensor) -> Tensor:
        return loss


class LearnedUncertainty(nn.Module):
    """loss / exp(u) + u, with u learned as a function of the noise level (Karras et al. 2023, 2312.02696).

    The minimum over u is the logarithm of the loss at that noise level, so that every level is divided by what is still
    to be expected there, and pulls on the network alike. The learned u is not needed for sampling, but is trained,
    averaged and saved with the network. The loss that is logged with it is not a squared error: it may fall below 0.

    u is a linear function of random Fourier features of c_noise = ln(sigma / alpha) / 4, as theirs; where they
    normalise its weights, these start at 0, which leaves the loss as it is at the start.

    Args:
        num_features: Number of Fourier features.
    """

    frequencies: Tensor  # (num_features,)
    phases: Tensor  # (num_features,)

    def __init__(self, *, num_features: int = 128) -> None:
        super().__init__()
        if num_features < 1:
            raise ValueError(f"LearnedUncertainty needs num_features >= 1, got num_features={num_features}")
        # A generator of its own and weights that need none: the network's first weights do not change with this choice.
        generator = torch.Generator().manual_seed(0)
        frequencies = 2 * math.pi * torch.randn(num_features, generator=generator)
        phases = 2 * math.pi * torch.rand(num_features, generator=generator)
        self.register_buffer("frequencies", frequencies)
        self.register_buffer("phases", phases)
        self.weight = nn.Parameter(torch.zeros(num_features))

    def forward(self, loss: Tensor, log_snr: Tensor) -> Tensor:
        """loss (B,), log_snr (B,) -> (B,), float32 also under autocast."""
        u = self.log_scale(log_snr)
        return at_least_float32(loss) * torch.exp(-u) + u

    def log_scale(self, log_snr: Tensor) -> Tensor:
        """u at log_snr, any shape -> same shape."""
        # beyond +-60 no time of a float32 schedule is left but t = 0 and t = 1, where the log-SNR is infinite
        c_noise = at_least_float32(log_snr).clamp(-60, 60) / -8
        features = math.sqrt(2 / len(self.weight)) * torch.cos(
            c_noise[..., None] * self.frequencies + self.phases
        )
        return (features * self.weight).sum(-1)  # no matrix product: autocast would round it to bfloat16
