"""The picture that ``ldm plot`` makes of curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ldm.commands.curves import LOG_SNR_RANGE, Curves

# Told apart by colour-blind eyes as well (Okabe & Ito).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
GREY = "#666666"
COLUMNS = 3


@dataclass(frozen=True)
class Style:
    """How one curve is drawn in every panel."""

    colour: str
    width: float


@dataclass(frozen=True)
class Panel:
    """One of the picture's panels: what it says, and how one curve and then the axes are drawn."""

    title: str
    label: str  # of the x axis
    draw: Callable[[Axes, Curves, Style], None]
    finish: Callable[[Axes, Sequence[Curves]], None]


def draw(drawn: Sequence[Curves], path: Path, *, panels: Sequence[str]) -> None:
    """Write one PNG, a colour for each of ``drawn`` and a panel for each of ``panels``, names of ``PANELS``."""
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
    width = max(4.4 * columns, 7.0)  # inches
    legend_rows = -(-len(drawn) // int(width / 1.7))  # of entries some 1.7 inches wide
    height = 3.5 * rows + 0.22 * legend_rows + 0.3
    figure = Figure(figsize=(width, height), dpi=120, layout=layout)
    FigureCanvasAgg(figure)  # no display, no global state
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    # later ones are thinner, so that what lies under them can be seen
    widths = np.linspace(3.0, 1.3, len(drawn)) if len(drawn) > 1 else [1.8]
    styles = [Style(COLOURS[i % len(COLOURS)], float(width)) for i, width in enumerate(widths)]
    for axis, name in zip(axes, panels, strict=False):
        panel = PANELS[name]
        for one, style in zip(drawn, styles, strict=True):
            panel.draw(axis, one, style)
        axis.set_title(panel.title, fontsize=11)
        axis.set_xlabel(panel.label, color=GREY)
        axis.grid(alpha=0.2, lw=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(GREY)
        axis.tick_params(which="both", colors=GREY, labelsize=9)
        panel.finish(axis, drawn)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    handles = [
        Line2D([], [], color=style.colour, lw=style.width + 0.6, label=one.label)
        for one, style in zip(drawn, styles, strict=True)
    ]
    figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=-(-len(drawn) // legend_rows),
        frameon=False,
        fontsize=10,
    )
    figure.savefig(path, format="png")


# ------------------------------------------------------------------------------------------------- the panels


def _signal(axis: Axes, one: Curves, style: Style) -> None:
    axis.plot(one.t, one.alpha, color=style.colour, lw=style.width)
    axis.plot(one.t, one.sigma, color=style.colour, lw=style.width, ls=(0, (4, 2)))


def _finish_signal(axis: Axes, drawn: Sequence[Curves]) -> None:
    if max(float(np.nanmax(one.sigma)) for one in drawn) > 2:
        axis.set_yscale("symlog", linthresh=1.0)  # in proportion up to 1, in powers of ten above


def _log_snr(axis: Axes, one: Curves, style: Style) -> None:
    axis.plot(one.t, one.log_snr, color=style.colour, lw=style.width)


def _finish_log_snr(axis: Axes, drawn: Sequence[Curves]) -> None:
    axis.set_ylim(*LOG_SNR_RANGE)


def _steps(axis: Axes, one: Curves, style: Style) -> None:
    """What lies beyond the frame is a hollow dot at its edge."""
    number = np.arange(1, len(one.steps) + 1)
    shown = np.clip(one.steps, *LOG_SNR_RANGE)
    axis.plot(number, shown, color=style.colour, lw=1, alpha=0.6)
    beyond = shown != one.steps
    # The layout must not count with dots that reach over the edge: it would make room for all of the data.
    dots: dict[str, Any] = {"ms": 4, "color": style.colour, "clip_on": False, "in_layout": False, "zorder": 3}
    axis.plot(number[~beyond], shown[~beyond], "o", **dots)
    axis.plot(number[beyond], shown[beyond], "o", mfc="white", **dots)


def _finish_steps(axis: Axes, drawn: Sequence[Curves]) -> None:
    axis.set_ylim(*LOG_SNR_RANGE)
    axis.set_ylabel("log-SNR", color=GREY)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def _time_law(axis: Axes, one: Curves, style: Style) -> None:
    axis.plot(one.t_bins, one.t_density, color=style.colour, lw=style.width)
    axis.fill_between(one.t_bins, one.t_density, color=style.colour, alpha=0.05, lw=0)


def _finish_time_law(axis: Axes, drawn: Sequence[Curves]) -> None:
    # some laws have a pole at an end, which would flatten everything else
    axis.set_ylim(0, 1.15 * max(float(np.percentile(one.t_density, 99)) for one in drawn))


def _snr_law(axis: Axes, one: Curves, style: Style) -> None:
    axis.plot(one.snr_bins, one.snr_density, color=style.colour, lw=style.width)
    axis.fill_between(one.snr_bins, one.snr_density, color=style.colour, alpha=0.05, lw=0)


def _finish_snr_law(axis: Axes, drawn: Sequence[Curves]) -> None:
    axis.set_xlim(*LOG_SNR_RANGE)
    axis.set_ylim(bottom=0)


def _weight(axis: Axes, one: Curves, style: Style) -> None:
    axis.plot(one.snr_bins, one.weight, color=style.colour, lw=style.width)


def _finish_weight(axis: Axes, drawn: Sequence[Curves]) -> None:
    axis.set_xlim(*LOG_SNR_RANGE)
    axis.set_yscale("log")
    axis.set_ylim(1e-3, 1e3)


PANELS = {
    "signal": Panel(
        "signal alpha (—) and noise sigma (- -)", "t, from data to noise", _signal, _finish_signal
    ),
    "log_snr": Panel("log-SNR, log(alpha² / sigma²)", "t, from data to noise", _log_snr, _finish_log_snr),
    "steps": Panel("where a sampler asks the network", "number of the step", _steps, _finish_steps),
    "time_law": Panel("density of t in training", "t, from data to noise", _time_law, _finish_time_law),
    "snr_law": Panel(
        "density of log-SNR in training", "log-SNR, from noise to data", _snr_law, _finish_snr_law
    ),
    "weight": Panel("weight of the error of eps", "log-SNR, from noise to data", _weight, _finish_weight),
}
