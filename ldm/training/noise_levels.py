"""The validation loss apart by noise level: where a model is better than another, and where it has stopped learning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ldm.training.figures import new_figure, save

BY_LOG_SNR = "val_by_log_snr/"  # metric names: val_by_log_snr/-3 for log-SNR in [-4, -2)
LEVELS = range(-11, 12, 2)  # middles of the bins; the two outermost take what lies beyond them


class LossByNoise:
    """Sums of losses in bins of log-SNR, two wide.

    Args:
        sums: (2, bins) losses summed and counted; None for an empty one.
    """

    def __init__(self, *, sums: Tensor | None = None) -> None:
        self.sums = torch.zeros(2, len(LEVELS), dtype=torch.float64) if sums is None else sums

    def add(self, losses: Tensor, log_snr: Tensor) -> None:
        """losses, log_snr (B,); infinite levels are fine."""
        first, last = LEVELS[0], LEVELS[-1]
        bins = ((log_snr.detach().cpu().double().clamp(first, last) - first) / 2).round().long()  # (B,)
        losses = losses.detach().cpu().double()
        self.sums[0].index_add_(0, bins, losses)
        self.sums[1].index_add_(0, bins, torch.ones_like(losses))

    def means(self) -> dict[int, float]:
        """Middle of the bin -> mean loss, for bins that hold something."""
        return {
            level: float(total / count)
            for level, total, count in zip(LEVELS, *self.sums, strict=True)
            if count
        }


def draw_noise_levels(metrics: str | Path, path: Path) -> Path | None:
    """Draw the loss over log-SNR, one line a validation, the newest darkest; None where nothing was logged.

    Args:
        metrics: a run's metrics.csv.
        path: the picture.
    """
    table = pd.read_csv(metrics)
    columns = {int(name.removeprefix(BY_LOG_SNR)): name for name in table if name.startswith(BY_LOG_SNR)}
    rows = table.dropna(subset=list(columns.values()), how="all") if columns else table.iloc[:0]
    if not len(rows):
        return None
    levels = sorted(columns)
    figure, plot = new_figure()
    for i, (_, row) in enumerate(rows.iterrows()):
        values = np.array([row[columns[level]] for level in levels], dtype=float)
        newest = i == len(rows) - 1
        share = (i + 1) / len(rows)
        plot.plot(
            levels,
            values,
            "o-" if newest else "-",
            ms=4,
            lw=2 if newest else 1,
            color=(0.8 - 0.6 * share, 0.85 - 0.45 * share, 0.9 - 0.25 * share),
            label=f"step {int(row['step']):,}" if newest or i == 0 else None,
        )
    plot.set_xlabel("log-SNR: noise on the left, data on the right")
    plot.set_ylabel("validation loss")
    plot.legend(frameon=False, fontsize=9)
    return save(figure, path)
