"""Reads coloured things from a picture: where they are, their colours, their shapes. Nothing here is learned.

Pictures may be as soft and as slightly wrong in colour as a decoder makes them: thresholds are set at half
coverage, colours are judged by their direction from the background (which a blurred edge does not change),
specks are ignored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage
from skimage.feature import peak_local_max
from skimage.segmentation import watershed

from ldm.evaluation.outlines import Bank, Fit, Outline

# Shares of a fully covered pixel.
_FOREGROUND = 0.4  # what belongs to a thing at all
_RELIABLE = 0.6  # below, a pixel's hue is an edge's mixture and no evidence
_FAINTEST = 0.5  # a thing paler than this has no colour

_WORST_HUE = (
    60.0  # RGB distance off the line from background to colour; lines of two colours end 90 or more apart
)
_SPECK = (
    20 / 64**2
)  # share of the picture below which a spot is no thing; real ones start at 100 pixels of 64 x 64
_GOOD_SCORE = 0.85  # a worse fit may be several things that touch
_EIGHT = np.ones((3, 3))  # pixels that meet at a corner are connected


@dataclass(frozen=True)
class World:
    """The things that can be in a picture."""

    background: tuple[int, int, int]
    colours: Mapping[str, tuple[int, int, int]]
    outlines: Mapping[str, Outline]

    @cached_property
    def bank(self) -> Bank:
        """The ideal masks of the outlines, drawn at first use."""
        return Bank.of(self.outlines)


@dataclass(frozen=True)
class Found:
    """One thing read from a picture; colour or shape is None where it is like none of the known ones."""

    colour: str | None
    shape: str | None
    x: float  # centre of its box in pixels, y downwards
    y: float
    score: float  # how well the shape's mask fits, at most 1


def read(image: np.ndarray, world: World) -> list[Found]:
    """All things in a picture (H, W, 3) uint8, from the top down."""
    offset = image.astype(np.float64) - world.background  # (H, W, 3)
    speck = _SPECK * image.shape[0] * image.shape[1]
    out = []
    for region in _regions(offset, world, speck):
        colour, coverage = _colour(offset, region, world)
        fits = [world.bank.best(coverage)]
        if fits[0].score < _GOOD_SCORE:
            pieces = _split(coverage, world.bank, speck)
            if pieces and min(piece.score for piece in pieces) > fits[0].score:
                fits = pieces
        out += [Found(colour, fit.shape, fit.x, fit.y, fit.score) for fit in fits]
    return sorted(out, key=lambda thing: (thing.y, thing.x))


def _project(offset: np.ndarray, world: World) -> tuple[np.ndarray, np.ndarray]:
    """How much of each colour would make these pixels, and how far off that is.

    A pixel that a colour covers by a share a is background + a * (colour - background).

    Args:
        offset: (..., 3) pixels less background.

    Returns:
        The share (..., K) and the RGB distance left over (..., K), one per colour.
    """
    direction = np.array(list(world.colours.values()), float) - world.background  # (K, 3)
    share = offset @ direction.T / (direction**2).sum(axis=1)
    rest = offset[..., None, :] - np.maximum(share, 0.0)[..., None] * direction
    return share, np.sqrt((rest**2).sum(axis=-1))


def _regions(offset: np.ndarray, world: World, speck: float) -> Iterator[np.ndarray]:
    """Masks (H, W) bool of connected pixels of one hue, specks left out."""
    share, distance = _project(offset, world)
    hue = distance.argmin(axis=-1)  # (H, W)
    coverage = np.take_along_axis(share, hue[..., None], axis=-1)[..., 0]
    foreground = coverage > _FOREGROUND

    # Edges show mixed hues: only well covered pixels in patches of one hue tell, the others follow them.
    reliable = np.zeros_like(foreground)
    for k in np.unique(hue[foreground]):
        reliable |= _without_specks((hue == k) & (coverage > _RELIABLE), speck / 2)
    if reliable.any():
        rows, columns = ndimage.distance_transform_edt(~reliable, return_distances=False, return_indices=True)
        hue = hue[rows, columns]
    for k in np.unique(hue[foreground]):
        labels, num = ndimage.label(_without_specks((hue == k) & foreground, speck), _EIGHT)
        for i in range(num):
            yield labels == i + 1


def _without_specks(mask: np.ndarray, smallest: float) -> np.ndarray:
    """``mask`` (H, W) bool less its connected parts of fewer than ``smallest`` pixels."""
    labels, _ = ndimage.label(mask, _EIGHT)
    large = np.bincount(labels.ravel()) >= smallest
    large[0] = False
    return large[labels]


def _colour(offset: np.ndarray, region: np.ndarray, world: World) -> tuple[str | None, np.ndarray]:
    """The colour of a region, and how far each pixel in and next to it is covered: (H, W) in [0, 1]."""
    strength = np.sqrt((offset**2).sum(axis=-1))
    core = region & (strength >= np.quantile(strength[region], 0.6))
    typical = np.median(offset[core], axis=0)  # (3,)
    share, distance = _project(typical, world)
    best = int(distance.argmin())
    known = share[best] >= _FAINTEST and distance[best] <= _WORST_HUE
    # Against its own typical colour, half coverage is the thing's edge even where it is pale.
    coverage = np.clip(offset @ typical / (typical @ typical), 0.0, 1.0)
    near = ndimage.binary_dilation(region, _EIGHT)
    return (list(world.colours)[best] if known else None), np.where(near, coverage, 0.0)


def _split(coverage: np.ndarray, bank: Bank, speck: float) -> list[Fit]:
    """Cut things of one colour that touch at their waists; empty where there is nothing to cut."""
    # Rings are filled first, since depth is to have one peak per thing.
    filled = ndimage.binary_fill_holes(coverage > 0.5)
    depth = ndimage.gaussian_filter(ndimage.distance_transform_edt(filled), 1.0)
    peaks = peak_local_max(depth, min_distance=4, threshold_abs=2.0, exclude_border=False)
    if len(peaks) < 2:
        return []
    markers = np.zeros(coverage.shape, int)
    markers[tuple(peaks.T)] = np.arange(len(peaks)) + 1
    labels = watershed(-depth, markers, mask=(coverage > 0.1) | filled)
    parts = [np.where(labels == i + 1, coverage, 0.0) for i in range(len(peaks))]
    return [bank.best(part) for part in parts if (part > 0.5).sum() >= speck]
