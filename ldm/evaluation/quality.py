"""How far a picture is from another one that it should equal: PSNR and SSIM. LPIPS is in ``ldm/training/lpips.py``."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SIGMA, RADIUS = 1.5, 5  # of SSIM's window: 11 x 11, as in the paper
K1, K2 = 0.01, 0.03


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, a, b (B, 3, H, W) uint8 -> (B,); pictures that are equal get 100 dB."""
    error = (a.double() - b.double()).square().flatten(1).mean(dim=1)
    return 10 * torch.log10(255**2 / error.clamp(min=255**2 * 1e-10))


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004, eq. 13), a, b (B, 3, H, W) uint8 -> (B,).

    The mean over colours and over the places where the window lies in the picture, as the authors' own code has it.

    Raises:
        ValueError: The pictures are smaller than the window.
    """
    if min(a.shape[-2:]) < 2 * RADIUS + 1:
        raise ValueError(
            f"SSIM looks through windows of 11 x 11 pixels, and the pictures are {tuple(a.shape[-2:])}"
        )
    places = torch.arange(-RADIUS, RADIUS + 1, dtype=torch.float64, device=a.device)
    window = torch.exp(-places.square() / (2 * SIGMA**2))
    window = window / window.sum()

    def blurred(x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)[:, None]  # (3B, 1, H, W)
        flat = F.conv2d(F.conv2d(flat, window.view(1, 1, 1, -1)), window.view(1, 1, -1, 1))
        return flat.view(*x.shape[:2], *flat.shape[-2:])

    x, y = a.double(), b.double()
    mean_x, mean_y = blurred(x), blurred(y)
    var_x, var_y = blurred(x * x) - mean_x**2, blurred(y * y) - mean_y**2
    cov = blurred(x * y) - mean_x * mean_y
    c1, c2 = (K1 * 255) ** 2, (K2 * 255) ** 2
    likeness = (2 * mean_x * mean_y + c1) * (2 * cov + c2)
    return (likeness / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).flatten(1).mean(dim=1)
