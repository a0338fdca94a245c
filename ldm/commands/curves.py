"""What there is to see of a diffusion and a grid, as numbers: the curves that ``ldm plot`` draws."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ldm.diffusion.diffusion import Diffusion
from ldm.diffusion.schedules import log_snr
from ldm.sampling.grids import Grid

LOG_SNR_RANGE = (-16.0, 16.0)
NUM_TIMES = 601
NUM_DRAWS = 200_000  # quantiles of the law of t: enough for a smooth histogram
NUM_BINS = 160
MIN_COUNT = 20  # draws in a bin, below which its weight would be a matter of chance


@dataclass(frozen=True, kw_only=True)
class Curves:
    """One diffusion's curves; all arrays one-dimensional.

    Args:
        label: What it is called in the legend.
        t, alpha, sigma, log_snr: Over ``t_range``.
        t_bins, t_density: Centres of bins of t, and how densely training draws times there.
        snr_bins, snr_density: The same of the log-SNR.
        weight: Effective weight at ``snr_bins``; not a number where training never goes.
        steps: log-SNR at the times at which a sampler asks the network, noise first.
    """

    label: str
    t: np.ndarray
    alpha: np.ndarray
    sigma: np.ndarray
    log_snr: np.ndarray
    t_bins: np.ndarray
    t_density: np.ndarray
    snr_bins: np.ndarray
    snr_density: np.ndarray
    weight: np.ndarray
    steps: np.ndarray


def curves(diffusion: Diffusion, grid: Grid, num_steps: int, *, label: str) -> Curves:
    """The curves of a diffusion whose schedule is resolved for its latents.

    The effective weight is w(log-SNR) of Kingma & Gao 2023 (2303.00848): the density of the log-SNR in training times
    the weight on the squared error of eps. Two trainings of the same w differ in variance only, whatever the schedule,
    the parameterization and the law of t are. Scaled to 1 at a log-SNR of 0.
    """
    schedule, (t_min, t_max) = diffusion.schedule, diffusion.t_range
    t = torch.linspace(t_min, t_max, NUM_TIMES, dtype=torch.float64)
    u = (torch.arange(NUM_DRAWS, dtype=torch.float64) + 0.5) / NUM_DRAWS
    drawn = diffusion.times(u, slots=range(NUM_DRAWS), num_slots=NUM_DRAWS)
    t_density, t_edges = np.histogram(drawn.numpy(), bins=NUM_BINS, range=(t_min, t_max), density=True)

    level = log_snr(schedule, drawn)  # (NUM_DRAWS,)
    inside = (level > LOG_SNR_RANGE[0]) & (level < LOG_SNR_RANGE[1])
    level, drawn = level[inside], drawn[inside]
    count, edges = np.histogram(level.numpy(), bins=NUM_BINS, range=LOG_SNR_RANGE)
    width = edges[1] - edges[0]
    weighted, _ = np.histogram(level.numpy(), bins=edges, weights=weight_on_eps(diffusion, drawn).numpy())
    middle = (edges[1:] + edges[:-1]) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        weight = np.where(count >= MIN_COUNT, weighted, np.nan)
        weight = weight / weight[np.nanargmin(np.where(count >= MIN_COUNT, np.abs(middle), np.nan))]
    times = grid(schedule, num_steps, t_range=diffusion.t_range)[:-1].double()
    return Curves(
        label=label,
        t=t.numpy(),
        alpha=schedule.alpha(t).numpy(),
        sigma=schedule.sigma(t).numpy(),
        log_snr=log_snr(schedule, t).numpy(),
        t_bins=(t_edges[1:] + t_edges[:-1]) / 2,
        t_density=t_density,
        snr_bins=middle,
        snr_density=count / (NUM_DRAWS * width),
        weight=weight,
        steps=log_snr(schedule, times).numpy(),
    )


def weight_on_eps(diffusion: Diffusion, t: torch.Tensor) -> torch.Tensor:
    """How the loss weighs the squared error of eps at times t (n,), whatever the network predicts: (n,)."""
    alpha, sigma = diffusion.schedule.alpha(t), diffusion.schedule.sigma(t)
    p, q = diffusion.parameterization.target_coeffs(alpha, sigma)
    determinant = alpha * q - sigma * p
    # error of x0 = (sigma / det) * error of the output, error of eps = (alpha / det) * error of the output
    on_output = diffusion.weighting(log_snr(diffusion.schedule, t), (sigma / determinant).square())
    return on_output * (determinant / alpha).square()
