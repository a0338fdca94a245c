"""Do two readings of the same weights say the same? What an export asks before it reports success."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ldm.interfaces import Conditioning

TOLERANCE = 1e-3  # of the answer's spread: other kernels in other orders are 1e-6 apart, another network is 1
SIDE = 32  # of the latents that are asked about, where the run's own are larger


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A question to a denoising network: x (2, C, H, W), t (2,) and a conditioning."""

    x: Tensor
    t: Tensor
    cond: Conditioning


def probe_for(encoded: Conditioning, *, channels: int, latent_size: tuple[int, int], stride: int) -> Probe:
    """Noise of fixed seed in the shapes that a run's networks see.

    Args:
        encoded: The text encoder's answer to two captions; only its shapes matter.
        channels: C.
        latent_size: (H, W) that the run was trained at.
        stride: f, for the sizes in pixels.
    """
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    height, width = (min(side, SIDE) for side in latent_size)
    mask = torch.ones(encoded.mask.shape, dtype=torch.bool)
    mask[1, (mask.shape[1] + 1) // 2 :] = False
    pixels = [height * stride, width * stride]
    cond = replace(
        encoded,
        tokens=noise(*encoded.tokens.shape),
        mask=mask,
        pooled=noise(*encoded.pooled.shape),
        sizes=torch.tensor([[*pixels, 0, 0, *pixels]] * 2, dtype=torch.float32),
        guidance=torch.tensor([1.0, 3.5]),
    )
    return Probe(x=noise(2, channels, height, width), t=torch.tensor([0.2, 0.9]), cond=cond)


def asked(network: nn.Module, probe: Probe) -> Tensor:
    """The network's answer without a learned variance, (2, C, H, W)."""
    with torch.no_grad():
        return network(probe.x, probe.t, probe.cond)[:, : probe.x.shape[1]]


def agreement(ours: Tensor, theirs: Tensor, who: str) -> str:
    """How near two answers are, in words.

    Raises:
        ValueError: They are of different networks.
    """
    if ours.shape != theirs.shape:
        raise ValueError(
            f"{who} answers {tuple(theirs.shape)} where the run's network answers {tuple(ours.shape)}"
        )
    distance = float((ours - theirs.float()).abs().max())
    if not distance <= TOLERANCE * max(float(ours.std()), 1e-6):  # also where it is not a number
        raise ValueError(
            f"{who} does not say what the run's network says: they differ by up to {distance:.2g} where answers "
            f"spread by {float(ours.std()):.2g}; nothing was kept of this export"
        )
    return f"{who} agrees within {distance:.1g}"
