"""The pictures of a comparison: losses over log-SNR beside their differences, and scores over images seen."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ldm.commands.compare_table_data import Recipe, Row
from ldm.commands.curves_picture import COLOURS, GREY
from ldm.evaluation.scores import Score

PANEL = (5.4, 3.6)  # inches


def draw_levels(recipes: Sequence[Recipe], row: Row) -> bytes:
    """A metric with several columns called by log-SNR, and its difference to the first recipe: a PNG."""
    figure, (left, right) = _figure(2)
    levels = np.array([float(level.metric.rpartition("/")[2]) for level in row.levels])
    for i, recipe in enumerate(recipes):
        cells = [level.cells[recipe.label] for level in row.levels]
        left.plot(levels, [cell.value for cell in cells], "o-", ms=4, color=_colour(i), label=recipe.label)
        if i == 0:
            continue
        found = [level.verdicts[recipe.label].difference for level in row.levels]
        values = np.array([one.value for one in found])
        ends = np.array([[one.value if x is None else x for x in (one.low, one.high)] for one in found])
        place = levels + 0.25 * (i - len(recipes) / 2) / len(recipes)  # side by side
        right.errorbar(
            place,
            values,
            yerr=np.abs(ends.T - values),
            fmt="o",
            ms=4,
            capsize=2,
            color=_colour(i),
            label=recipe.label,
        )
    left.set_ylabel(row.metric, color=GREY)
    right.set_ylabel(f"less that of {recipes[0].label}", color=GREY)
    right.axhline(0.0, lw=1, color=_colour(0))
    for axis in (left, right):
        axis.set_xlabel("log-SNR: noise on the left, data on the right", color=GREY)
    left.legend(frameon=False, fontsize=8)
    return _png(figure)


def draw_progress(recipes: Sequence[Recipe], row: Row) -> bytes | None:
    """The score of each run over images seen: a PNG; None where no run was scored twice in this way."""
    curves = [
        (i, run.label, _history(run.scores, row.cells[recipe.label].protocol_hash))
        for i, recipe in enumerate(recipes)
        for run in recipe.runs
    ]
    if all(len(history) < 2 for _, _, history in curves):
        return None
    figure, (axis,) = _figure(1)
    for i, label, history in curves:
        seen = [score.images_seen for score in history]
        axis.plot(seen, [score.value for score in history], "o-", ms=4, color=_colour(i), label=label)
        if all(score.low is not None for score in history):
            low, high = [score.low for score in history], [score.high for score in history]
            axis.fill_between(seen, low, high, color=_colour(i), alpha=0.12, lw=0)
    axis.set_xlabel("images seen", color=GREY)
    axis.set_ylabel(row.metric, color=GREY)
    axis.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    axis.legend(frameon=False, fontsize=8)
    return _png(figure)


def _history(scores: Sequence[Score], protocol_hash: str) -> list[Score]:
    same = [score for score in scores if score.protocol.hash == protocol_hash]
    return sorted(same, key=lambda score: score.images_seen)


def _figure(panels: int) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(PANEL[0] * panels, PANEL[1]), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)  # no display, no global state
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(colors=GREY, labelsize=9)
    return figure, axes


def _png(figure: Figure) -> bytes:
    file = BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _colour(i: int) -> str:
    return COLOURS[i % len(COLOURS)]
