"""Draws scenes of coloured shapes: anti-aliased, on a plain background."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ldm.data.shapes import BACKGROUND, COLOURS, SIZE, Scene, Thing

SUPERSAMPLING = (
    8  # points per pixel and axis: coverage is right to 1/16 at straight edges, better at round ones
)

Outline = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""x, y of any equal shape, the thing's box being [-1, 1] x [-1, 1], y downwards -> bool, inside or not."""


def _circle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return x * x + y * y <= 1.0


def _square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) <= 0.9


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # Tip at (0, -1), foot from (-1, 0.8) to (1, 0.8): nearly equilateral, and its box is all but filled.
    return (y <= 0.8) & (np.abs(x) <= (y + 1.0) / 1.8)


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = np.abs(x), np.abs(y)
    return (np.maximum(x, y) <= 1.0) & (np.minimum(x, y) <= 0.33)


def _ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    squared = x * x + y * y
    return (squared <= 1.0) & (squared >= 0.55**2)


OUTLINES: dict[str, Outline] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
    "ring": _ring,
}


def render(scene: Scene, size: int = SIZE) -> np.ndarray:
    """The picture of a scene: (size, size, 3) uint8. Positions scale with ``size``."""
    canvas = np.empty((size, size, 3))
    canvas[:] = BACKGROUND
    for thing in scene.things:
        _draw(canvas, thing, size / SIZE)
    return np.rint(canvas).astype(np.uint8)


def _draw(canvas: np.ndarray, thing: Thing, scale: float) -> None:
    """Lay one thing over ``canvas``, (size, size, 3) float, by the share of each pixel that it covers."""
    size = canvas.shape[0]
    x, y, radius = thing.x * scale, thing.y * scale, thing.radius * scale
    # Only the pixels of the thing's box are worked on.
    left, top = max(0, int(np.floor(x - radius))), max(0, int(np.floor(y - radius)))
    right, bottom = min(size, int(np.ceil(x + radius))), min(size, int(np.ceil(y + radius)))
    columns = (_points(left, right) - x) / radius
    rows = (_points(top, bottom) - y) / radius
    inside = OUTLINES[thing.shape](*np.meshgrid(columns, rows))
    boxes = inside.reshape(bottom - top, SUPERSAMPLING, right - left, SUPERSAMPLING)
    coverage = boxes.mean(axis=(1, 3))[..., None]  # (height, width, 1)
    patch = canvas[top:bottom, left:right]
    patch += coverage * (np.array(COLOURS[thing.colour]) - patch)


def _points(first: int, last: int) -> np.ndarray:
    """Where pixels first..last-1 are looked at along one axis, in pixels."""
    return first + (np.arange((last - first) * SUPERSAMPLING) + 0.5) / SUPERSAMPLING
