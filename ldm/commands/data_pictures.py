"""The pictures that ``ldm data`` makes: how buckets fill, and a contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from PIL import Image

from ldm.commands.curves_picture import COLOURS, GREY
from ldm.data.buckets import Assignment
from ldm.data.captions import texts_of
from ldm.data.decode import UnreadablePicture
from ldm.data.index import SampleIndex
from ldm.data.order import permutation
from ldm.data.pixels import decode_pixels
from ldm.randomness import address
from ldm.training.grids import labelled_grid

CELL = 128  # pixels of a picture in the contact sheet
COLUMNS = 8
LONGEST = 90  # characters of a caption under it


def draw_buckets(assignment: Assignment, height: np.ndarray, width: np.ndarray, path: Path) -> None:
    """Write one PNG: above, which shapes the pictures have and where they go; below, each bucket in its shape."""
    figure = Figure(figsize=(10, 5.6), dpi=120, layout=ConstrainedLayoutEngine(h_pad=0.12))
    FigureCanvasAgg(figure)  # no display, no global state
    shapes, buckets = figure.subplots(2, 1, height_ratios=(1, 1.1))
    left_out = int((assignment.bucket < 0).sum())
    _draw_shapes(shapes, assignment, np.log2(width / height))
    _draw_sizes(buckets, assignment)
    lost = f", {left_out:,} left out" if left_out else ""
    shapes.set_title(
        f"{len(assignment.bucket):,} pictures in {len(assignment.sizes)} sizes{lost}", fontsize=11
    )
    figure.savefig(path)


def _draw_shapes(axes: Axes, assignment: Assignment, ratio: np.ndarray) -> None:
    """A histogram over log2(width / height), each bucket's pictures in its colour."""
    least, most = np.percentile(ratio, [0.2, 99.8])
    edges = np.linspace(min(least, -0.1) - 0.05, max(most, 0.1) + 0.05, 90).tolist()
    parts = [ratio[assignment.bucket == k].clip(edges[0], edges[-1]) for k in range(len(assignment.sizes))]
    colours = [COLOURS[k % len(COLOURS)] for k in range(len(parts))]
    out = ratio[assignment.bucket < 0].clip(edges[0], edges[-1])
    axes.hist([*parts, out], bins=edges, stacked=True, color=[*colours, "#dddddd"])
    for k, (height, width) in enumerate(assignment.sizes):
        axes.axvline(np.log2(width / height), color=colours[k], lw=1, ls=":")
    marks = [
        mark
        for mark in (1 / 4, 1 / 3, 1 / 2, 2 / 3, 1, 3 / 2, 2, 3, 4)
        if edges[0] <= np.log2(mark) <= edges[-1]
    ]
    axes.set_xticks([np.log2(mark) for mark in marks], [f"{mark:.3g}" for mark in marks])
    axes.set_xlabel("width / height of the pictures, coloured by the size they come out in", color=GREY)
    axes.set_ylabel("pictures", color=GREY)
    _plain(axes)


def _draw_sizes(axes: Axes, assignment: Assignment) -> None:
    """Each size as a rectangle of its shape, filled up to its share of the largest bucket."""
    counts = assignment.counts()
    longest = max(max(size) for size in assignment.sizes)
    at = 0.0
    for k, (height, width) in enumerate(assignment.sizes):
        colour, (h, w) = COLOURS[k % len(COLOURS)], (height / longest, width / longest)
        room = max(w, 0.5)
        left = at + (room - w) / 2
        axes.add_patch(Rectangle((left, 0), w, h * counts[k] / counts.max(), color=colour, alpha=0.6, lw=0))
        axes.add_patch(Rectangle((left, 0), w, h, fill=False, ec=colour, lw=1.2))
        share = counts[k] / max(1, len(assignment.bucket))
        middle = at + room / 2
        axes.text(middle, -0.06, f"{height}\nx {width}", ha="center", va="top", fontsize=8, color=GREY)
        axes.text(middle, h + 0.03, f"{counts[k]:,}\n{share:.1%}", ha="center", va="bottom", fontsize=8)
        at += room + 0.16
    axes.set_xlim(-0.1, at)
    axes.set_ylim(-0.38, 1.32)
    axes.set_aspect("equal")
    axes.axis("off")


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(which="both", colors=GREY, labelsize=9)


def contact_sheet(index: SampleIndex, fields: Sequence[str], path: Path, *, num: int, seed: int) -> None:
    """Write one PNG with some pictures, whole, each over its size and its caption."""
    chosen = permutation(address(seed, "contact sheet"), len(index))[:num].tolist()
    pictures, labels = [], []
    for i in sorted(chosen):
        cell, label = _cell(index.read(i, "picture") or b"")
        texts = texts_of(index.read(i, "txt"), index.read(i, "json"))
        said = next((text for name in fields for text in texts.get(name, ())), "(no caption)")
        pictures.append(cell)
        labels.append(f"{label} {said[:LONGEST]}{'...' if len(said) > LONGEST else ''}")
    title = f"{len(chosen)} of {len(index):,} samples, drawn at random"
    labelled_grid(torch.stack(pictures), labels, columns=COLUMNS, title=title, cell=CELL).save(path)


def _cell(picture: bytes) -> tuple[torch.Tensor, str]:
    """A picture in the middle of a cell (3, CELL, CELL) uint8, none of it cut off; and its size in words."""
    canvas = Image.new("RGB", (CELL, CELL), "#eeeeee")
    try:
        pixels = decode_pixels(picture, shown=(CELL // 4, CELL // 4), margin=4)
    except UnreadablePicture:
        return torch.from_numpy(np.array(canvas)).permute(2, 0, 1), "[damaged]"
    small = Image.fromarray(np.ascontiguousarray(pixels.values))
    scale = CELL / max(small.size)
    size = [max(1, round(side * scale)) for side in small.size]
    small = small.resize((size[0], size[1]), Image.Resampling.LANCZOS)
    canvas.paste(small, ((CELL - small.width) // 2, (CELL - small.height) // 2))
    return torch.from_numpy(np.array(canvas)).permute(2, 0, 1), f"[{pixels.width}x{pixels.height}]"
