"""Which shape a spot has: the best fit among ideal masks, stretched to the spot's box."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import ndimage

Outline = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""x, y of any equal shape within [-1, 1], y downwards -> bool, inside or not."""

_LEAST_SCORE = (
    0.70  # a worse fit to every mask is no known shape; true ones reach 0.92 under a blur of 1.6 pixels
)
_MOST_STRETCH = 1.4  # of width against height

_GRID = 24  # samples per axis of a mask
_FINE = 4  # points per sample and axis when a mask is drawn
_REACH = 1.25  # half width of the grid, in half boxes: some of the surroundings take part in the comparison
_STRETCHES = (
    0.9,
    1.0,
    1.1,
)  # a box read from a soft picture is a little wrong, so masks come with some slack
_MOVES = (-0.08, 0.0, 0.08)
_SOFTNESSES = (0.5, 1.5)  # blur, in samples of the grid; a pixel of the smallest things has 1.4


class Fit(NamedTuple):
    """What a spot looks like."""

    score: float  # at most 1
    shape: str | None  # None where no mask fits
    x: float  # centre of its box in pixels
    y: float


@dataclass(frozen=True)
class Bank:
    """Ideal masks of all shapes, each also a little moved, stretched and softened."""

    masks: np.ndarray  # (M, _GRID * _GRID) in [0, 1]
    names: tuple[str, ...]  # M
    aspects: np.ndarray  # (M,) width / height of the shape itself

    @staticmethod
    def of(outlines: Mapping[str, Outline]) -> Bank:
        """Draw the masks of these outlines."""
        axis = _axis(_GRID * _FINE)
        masks, names, aspects = [], [], []
        for name, outline in outlines.items():
            x, half_width, y, half_height = _box(outline)
            for wide, high, right, down in itertools.product(_STRETCHES, _STRETCHES, _MOVES, _MOVES):
                columns = x + half_width * (axis - right) / wide
                rows = y + half_height * (axis - down) / high
                inside = outline(*np.meshgrid(columns, rows))
                mask = inside.reshape(_GRID, _FINE, _GRID, _FINE).mean(axis=(1, 3))
                for softness in _SOFTNESSES:
                    masks.append(ndimage.gaussian_filter(mask, softness).ravel())
                    names.append(name)
                    aspects.append(half_width / half_height)
        return Bank(np.array(masks), tuple(names), np.array(aspects))

    def best(self, coverage: np.ndarray) -> Fit:
        """The best fit to one spot's coverage, (H, W) in [0, 1]."""
        x, half_width = _edges(coverage.max(axis=0))
        y, half_height = _edges(coverage.max(axis=1))
        axis = _axis(_GRID)
        at = np.meshgrid(y + half_height * axis, x + half_width * axis, indexing="ij")
        seen = ndimage.map_coordinates(coverage, at, order=1, mode="constant").ravel()  # (_GRID * _GRID,)
        # Tanimoto coefficient: intersection over union, for masks between 0 and 1.
        shared = self.masks @ seen  # (M,)
        scores = shared / ((self.masks**2).sum(axis=1) + seen @ seen - shared)
        stretch = half_width / half_height / self.aspects
        scores = np.where(np.maximum(stretch, 1 / stretch) <= _MOST_STRETCH, scores, 0.0)
        i = int(scores.argmax())
        return Fit(float(scores[i]), self.names[i] if scores[i] >= _LEAST_SCORE else None, x, y)


def _axis(num: int) -> np.ndarray:
    """Where a grid looks along one axis, in half boxes: (num,) within [-_REACH, _REACH]."""
    return ((np.arange(num) + 0.5) / num * 2 - 1) * _REACH


def _box(outline: Outline) -> tuple[float, float, float, float]:
    """Centre and half width along x, then along y, of an outline's own box."""
    axis = np.linspace(-1.0, 1.0, 401)
    inside = outline(*np.meshgrid(axis, axis))
    columns, rows = axis[inside.any(axis=0)], axis[inside.any(axis=1)]
    (left, right), (top, bottom) = columns[[0, -1]], rows[[0, -1]]
    return (left + right) / 2, (right - left) / 2, (top + bottom) / 2, (bottom - top) / 2


def _edges(profile: np.ndarray) -> tuple[float, float]:
    """Centre and half width of where a profile (n,) lies above one half, to a fraction of a sample."""
    above = np.flatnonzero(profile >= 0.5)
    if not len(above):
        return (len(profile) - 1) / 2, 0.5
    padded = np.pad(profile, 1)  # a spot that the border cuts ends there

    def beyond(inner: int, outer: int) -> float:
        """How far past sample ``inner`` the profile falls through one half, in [0, 1]."""
        high, low = padded[inner + 1], padded[outer + 1]
        return float((high - 0.5) / (high - low))

    start = above[0] - beyond(above[0], above[0] - 1)
    end = above[-1] + beyond(above[-1], above[-1] + 1)
    return float(start + end) / 2, max(float(end - start) / 2, 0.5)
