"""One look for all plots, drawn without a display."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def new_figure() -> tuple[Any, Any]:
    """A matplotlib figure and its axes."""
    # The object interface, not pyplot: no global state, no display, safe beside a user's own matplotlib.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.grid(alpha=0.25, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def new_grid(rows: int, columns: int, *, size: tuple[float, float]) -> tuple[Any, Any]:
    """A figure with several axes, (rows, columns) of them, ``size`` inches wide and high."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False)
    for panel in panels.flat:
        panel.grid(alpha=0.25, which="both")
        panel.spines[["top", "right"]].set_visible(False)
    return figure, panels


def save(figure: Any, path: Path) -> Path:
    """Write a PNG in one go: a viewer never meets half a picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = path.with_name(f".{path.name}")
    figure.savefig(hidden, format="png")
    os.replace(hidden, path)
    return path
