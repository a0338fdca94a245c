"""Curves of metrics.csv as PNG files, so that a run can be looked at without any service."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ldm.training.figures import new_figure, save
from ldm.training.noise_levels import BY_LOG_SNR, draw_noise_levels

TRAIN_COLOUR = "#3465a4"
VAL_COLOUR = "#cc4c02"
AXES = {"step", "epoch", "train/images_seen"}


@dataclass(frozen=True)
class Curve:
    """One metric: x (n,) images seen or steps, y (n,) values."""

    name: str
    x: np.ndarray
    y: np.ndarray


def draw_metrics(metrics: str | Path, folder: str | Path) -> list[Path]:
    """Draw every metric of a metrics.csv; train/<name> and val/<name> share the picture <name>.png.

    The loss by noise level is drawn over log-SNR instead, as loss_by_noise.png.

    Args:
        metrics: the file; one row per step, empty cells where a metric was not logged.
        folder: where the pictures go; made if missing. Former pictures are replaced in one go.

    Returns:
        The pictures drawn.
    """
    curves, axis = read_curves(metrics)
    groups: dict[str, list[Curve]] = {}
    for curve in curves:
        if curve.name.startswith(BY_LOG_SNR):
            continue  # together in one picture, below
        room, _, name = curve.name.partition("/")
        key = name if room in ("train", "val") and name else curve.name
        groups.setdefault(key.replace("/", "_"), []).append(curve)
    Path(folder).mkdir(parents=True, exist_ok=True)
    pictures = [draw_group(group, axis, Path(folder) / f"{key}.png") for key, group in groups.items()]
    levels = draw_noise_levels(metrics, Path(folder) / "loss_by_noise.png")
    return pictures if levels is None else [*pictures, levels]


def read_curves(metrics: str | Path) -> tuple[list[Curve], str]:
    """The metrics with at least one finite value, in the file's order, and the name of their x axis."""
    table = pd.read_csv(metrics)
    axis = table["step"].to_numpy(dtype=float)
    label = "steps"
    if "train/images_seen" in table:
        seen = table["train/images_seen"].to_numpy(dtype=float)
        known = np.isfinite(seen)
        if known.any():
            # Rows that did not log it (a validation between two logged steps) lie on the line through their
            # neighbours; that line begins at no images before step 0.
            axis = np.interp(axis, [-1.0, *axis[known]], [0.0, *seen[known]])
            label = "images seen"
    curves = []
    for name in table.columns:
        if name in AXES:
            continue
        y = pd.to_numeric(table[name], errors="coerce").to_numpy(dtype=float)
        kept = np.isfinite(y)
        if kept.any():
            curves.append(Curve(str(name), axis[kept], y[kept]))
    return curves, label


def smoothed(y: np.ndarray, *, span: float) -> np.ndarray:
    """Exponential moving average over about ``span`` points, without the pull towards the start; (n,) -> (n,)."""
    return pd.Series(y).ewm(span=max(span, 1.0), adjust=True).mean().to_numpy()


def draw_group(curves: list[Curve], axis: str, path: Path) -> Path:
    """One picture: training metrics raw and smoothed, validation metrics as points joined by a line."""
    figure, plot = new_figure()
    for curve in curves:
        if curve.name.startswith("val/"):
            plot.plot(
                curve.x,
                curve.y,
                "o-",
                ms=4,
                lw=1.2,
                color=VAL_COLOUR,
                label=f"{curve.name}  {curve.y[-1]:.4g}",
                zorder=3,
            )
            continue
        if len(curve.y) < 10:
            plot.plot(
                curve.x, curve.y, ".-", lw=1, color=TRAIN_COLOUR, label=f"{curve.name}  {curve.y[-1]:.4g}"
            )
            continue
        smooth = smoothed(curve.y, span=len(curve.y) / 20)
        plot.plot(curve.x, curve.y, lw=0.8, alpha=0.3, color=TRAIN_COLOUR)
        plot.plot(
            curve.x, smooth, lw=1.6, color=TRAIN_COLOUR, label=f"{curve.name}  {smooth[-1]:.4g} (smoothed)"
        )
    values = np.concatenate([curve.y for curve in curves])
    if wants_log_axis(values):
        plot.set_yscale("log")
    elif len(values) > 20:
        low, high = np.percentile(values, [0, 99.5])  # a spike at the start shall not flatten the rest
        if high > low:
            plot.set_ylim(low - 0.05 * (high - low), high + 0.1 * (high - low))
    plot.set_xlabel(axis)
    plot.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    plot.legend(frameon=False, fontsize=9)
    return save(figure, path)


def wants_log_axis(values: np.ndarray) -> bool:
    """Whether most of the values span more than a decade, all above zero."""
    if len(values) < 3 or values.min() <= 0:
        return False
    low, high = np.percentile(values, [2, 98])
    return bool(high / low > 10)
