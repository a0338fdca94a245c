"""In which sizes pictures come out: all in one square, or each in the shape nearest to its own.

Cutting every picture to a square loses what stands at its sides, and a model learns to draw cut pictures. With buckets
a picture goes into the size whose shape is nearest, all sizes having (almost) the same number of latent tokens, so
that every step costs the same; a step takes all its pictures from one bucket. With several resolutions a picture goes
to the largest that it fills.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Protocol

import numpy as np

from ldm.data.transforms import Size

TOO_SMALL = "smaller than the smallest size, and enlarge=false"
TOO_LONG = "more would be cut off than max_cut allows"
CHUNK = 1_000_000  # pictures at a time: memory stays flat


@dataclass(frozen=True)
class Assignment:
    """Which picture comes out in which size."""

    sizes: tuple[Size, ...]  # of the buckets
    bucket: np.ndarray  # (N,) int16, the place of each picture's size in ``sizes``; -1 for those left out
    left_out: dict[str, int] = field(default_factory=dict)  # why -> how many
    moved: int = 0  # pictures whose nearest size was closed, for it held too few

    def members(self, bucket: int) -> np.ndarray:
        """The pictures of one bucket, in order, (n,) int64."""
        return np.flatnonzero(self.bucket == bucket)

    @property
    def fingerprint(self) -> str:
        """A hash over which picture comes out in which size; "" where all come out in one."""
        if len(self.sizes) == 1 and not self.left_out:
            return ""
        digest = hashlib.blake2b(repr(self.sizes).encode(), digest_size=16)
        digest.update(np.ascontiguousarray(self.bucket).tobytes())
        return digest.hexdigest()

    def first(self, num: int) -> Assignment:
        """Of the first ``num`` pictures only; sizes that none of them comes out in are left away."""
        if num >= len(self.bucket):
            return self
        bucket = np.where(np.arange(len(self.bucket)) < num, self.bucket, -1)
        used = np.unique(bucket[bucket >= 0])
        places = np.full(len(self.sizes) + 1, -1, np.int16)  # the last is for -1
        places[used] = np.arange(len(used))
        return Assignment(tuple(self.sizes[i] for i in used), places[bucket], self.left_out, self.moved)

    def counts(self) -> np.ndarray:
        """How many pictures each bucket holds, (number of buckets,)."""
        return np.bincount(self.bucket[self.bucket >= 0], minlength=len(self.sizes))


class Sizes(Protocol):
    """Says in which sizes pictures come out."""

    def sized(self, image_size: int) -> Sizes:
        """The same, for this ``image_size`` where it has none of its own."""
        ...

    @property
    def looks_at_pictures(self) -> bool:
        """Whether the pictures' own sizes matter; where not, nobody needs to read them."""
        ...

    def every(self) -> tuple[Size, ...]:
        """All sizes there may be."""
        ...

    def assign(self, height: np.ndarray, width: np.ndarray) -> Assignment:
        """The pictures' own sizes (N,) -> the size each of them comes out in."""
        ...

    def within(self, sizes: Sequence[Size]) -> Sizes:
        """The same, with these sizes to choose from: those that training uses, for validation."""
        ...


@dataclass(frozen=True, kw_only=True)
class Square:
    """All pictures in one square.

    Args:
        image_size: Its side, in pixels; None for the data's ``image_size``.
    """

    image_size: int | None = None

    def __post_init__(self) -> None:
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(f"image_size is {self.image_size}; it is a side in pixels, 1 or more")

    def sized(self, image_size: int) -> Square:
        return self if self.image_size is not None else Square(image_size=image_size)

    @property
    def looks_at_pictures(self) -> bool:
        return False

    def every(self) -> tuple[Size, ...]:
        assert self.image_size is not None, "call sized() first"
        return ((self.image_size, self.image_size),)

    def assign(self, height: np.ndarray, width: np.ndarray) -> Assignment:
        return Assignment(self.every(), np.broadcast_to(np.int16(0), len(height)))  # takes no memory

    def within(self, sizes: Sequence[Size]) -> Square:
        return self


@dataclass(frozen=True, kw_only=True)
class Buckets:
    """Each picture in the size whose shape is nearest to its own: the one that cuts off the least of it.

    Args:
        image_size: Side of the square with as many pixels as each bucket has, at most; None for the data's
            ``image_size``; several for several resolutions, of which a picture goes to the largest at which it need
            not be enlarged.
        multiple_of: What sides must be multiples of: the codec's stride times the network's patch. A block of
            ``multiple_of`` x ``multiple_of`` pixels is a token.
        max_ratio: Longest shape: long side over short side. 1 makes squares only.
        slack: Share of the tokens that a size may have fewer than the square. 0 makes them equal to the token, which
            leaves few shapes.
        step: Neighbouring shapes differ at least by this factor in their ratio: 1 for all there are.
        min_pictures: Buckets with fewer are closed, and their pictures go to the next nearest. Below a batch's worth,
            a picture would stand in one batch several times.
        max_cut: Pictures of which more than this share would be cut off are left out; null leaves none out.
        enlarge: Whether pictures smaller than the smallest size are enlarged; false leaves them out.
        sizes: [[height, width], ...] to choose from instead of those that follow from the above.

    Raises:
        ValueError: An option that is none, or sizes that leave no shape.
    """

    image_size: int | Sequence[int] | None = None
    multiple_of: int = 64
    max_ratio: float = 2.0
    slack: float = 0.05
    step: float = 1.0
    min_pictures: int = 1
    max_cut: float | None = None
    enlarge: bool = True
    sizes: Sequence[Sequence[int]] | None = None

    def __post_init__(self) -> None:
        sides = self._sides()
        if self.image_size == [] or min(sides, default=1) < 1 or self.multiple_of < 1:
            raise ValueError(
                f"image_size={self.image_size} and multiple_of={self.multiple_of} are in pixels, from 1"
            )
        if any(b < 1.25 * a for a, b in pairwise(sides)):
            raise ValueError(
                f"image_size={self.image_size}: resolutions are too near each other; leave a factor of 1.25"
            )
        if not (self.max_ratio >= 1 and self.step >= 1):
            raise ValueError(
                f"buckets: max_ratio={self.max_ratio} and step={self.step} are factors, 1 or more"
            )
        if not (0 <= self.slack < 1 and (self.max_cut is None or 0 <= self.max_cut < 1)):
            raise ValueError(
                f"buckets: slack={self.slack} and max_cut={self.max_cut} are shares, from 0 to below 1"
            )
        wrong = [side for side in sides if side % self.multiple_of]
        if wrong and self.sizes is None:
            raise ValueError(
                f"image_size={wrong[0]} is no multiple of buckets.multiple_of={self.multiple_of}"
            )
        for size in self.sizes or ():
            if len(size) != 2 or min(size) < 1 or any(side % self.multiple_of for side in size):
                raise ValueError(
                    f"buckets.sizes: {list(size)} is no [height, width] in multiples of multiple_of={self.multiple_of}"
                )

    @property
    def looks_at_pictures(self) -> bool:
        return True

    def _sides(self) -> list[int]:
        if self.image_size is None:
            return []
        return sorted({self.image_size} if isinstance(self.image_size, int) else set(self.image_size))

    def sized(self, image_size: int) -> Buckets:
        return self if self.image_size is not None else replace(self, image_size=image_size)

    def every(self) -> tuple[Size, ...]:
        assert self.image_size is not None, "call sized() first"
        if self.sizes is not None:
            return tuple(dict.fromkeys((int(height), int(width)) for height, width in self.sizes))
        return tuple(size for side in self._sides() for size in self._shapes(side // self.multiple_of))

    def _shapes(self, side: int) -> list[Size]:
        """All shapes with at most side^2 tokens and at least (1 - slack) of them, from tall to wide, in pixels."""
        tokens, found = side * side, [(side, side)]
        for short in range(side - 1, 0, -1):  # from the square outwards
            long = tokens // short
            near = (long / short) / (found[-1][0] / found[-1][1]) < self.step
            if long > self.max_ratio * short or long * short < (1 - self.slack) * tokens or near:
                continue
            found.append((long, short))
        tall = [(height * self.multiple_of, width * self.multiple_of) for height, width in found]
        return [*reversed(tall), *((width, height) for height, width in tall[1:])]

    def within(self, sizes: Sequence[Size]) -> Buckets:
        return Buckets(
            image_size=self.image_size,
            multiple_of=self.multiple_of,
            max_cut=self.max_cut,
            enlarge=self.enlarge,
            sizes=[list(size) for size in sizes],
        )

    def assign(self, height: np.ndarray, width: np.ndarray) -> Assignment:
        bucket, left_out = _nearest(height, width, self.every(), self.max_cut, enlarge=self.enlarge)
        nearest, open_ = bucket, np.arange(len(self.every()))
        while True:  # closing one bucket may be what fills its neighbour, so the emptiest goes first
            counts = np.bincount(bucket[bucket >= 0], minlength=len(open_))
            emptiest = int(counts.argmin())
            if len(open_) == 1 or counts[emptiest] >= max(1, self.min_pictures):
                break
            moving = np.flatnonzero(bucket == emptiest)
            open_ = np.delete(open_, emptiest)
            left = tuple(self.every()[i] for i in open_)
            bucket = bucket - (bucket > emptiest)
            moved_to, refused = _nearest(
                height[moving], width[moving], left, self.max_cut, enlarge=self.enlarge
            )
            bucket[moving] = moved_to
            left_out = {why: left_out.get(why, 0) + refused.get(why, 0) for why in {**left_out, **refused}}
        moved = int(((bucket >= 0) & (open_[bucket] != nearest)).sum())
        return Assignment(
            tuple(self.every()[i] for i in open_),
            bucket.astype(np.int16),
            {why: count for why, count in left_out.items() if count},
            moved,
        )


def _nearest(
    height: np.ndarray, width: np.ndarray, sizes: Sequence[Size], max_cut: float | None, *, enlarge: bool
) -> tuple[np.ndarray, dict[str, int]]:
    """For each picture the place of the size it comes out in, (N,) int64, -1 for none; and how many have none, why."""
    bucket = np.empty(len(height), np.int64)
    left_out = {TOO_SMALL: 0, TOO_LONG: 0}
    shapes = np.array(sizes, np.float64)  # (K, 2)
    ratios, areas = np.log(shapes[:, 1] / shapes[:, 0]), shapes.prod(axis=1)
    for start in range(0, len(height), CHUNK):
        part = slice(start, start + CHUNK)
        h, w = height[part].astype(np.float64), width[part].astype(np.float64)
        apart = np.abs(np.log(w / h)[:, None] - ratios)  # (n, K); exp(-apart) is the share that is kept
        fills = (h[:, None] >= shapes[:, 0]) & (w[:, None] >= shapes[:, 1])  # not enlarged in this size
        chosen = np.full(len(h), -1)
        for area in _resolutions(areas):  # from large to small: the first that a picture fills
            here = np.flatnonzero(area)
            best = here[apart[:, here].argmin(axis=1)]
            free = (chosen < 0) & np.take_along_axis(fills, best[:, None], 1)[:, 0]
            chosen[free] = best[free]
        small = chosen < 0
        if enlarge:
            chosen[small] = best[small]  # the smallest resolution's nearest
        else:
            left_out[TOO_SMALL] += int(small.sum())
        if max_cut is not None:
            lost = 1 - np.exp(-np.take_along_axis(apart, np.maximum(chosen, 0)[:, None], 1)[:, 0])
            cut = (chosen >= 0) & (lost > max_cut)
            left_out[TOO_LONG] += int(cut.sum())
            chosen[cut] = -1
        bucket[part] = chosen
    return bucket, left_out


def _resolutions(areas: np.ndarray) -> list[np.ndarray]:
    """Sizes of one resolution each, (K,) bool, from large to small: areas within a factor of 1.5 of the largest."""
    left, found = np.ones(len(areas), bool), []
    while left.any():
        one = left & (areas > areas[left].max() / 1.5)
        found.append(one)
        left &= ~one
    return found


def check_sizes(sizes: Sequence[Size], unit: int) -> None:
    """
    Raises:
        ValueError: A side is no multiple of ``unit``, the codec's stride times the network's patch.
    """
    for height, width in sizes:
        if height % unit or width % unit:
            what = f"image_size={height}" if height == width else f"the bucket {height} x {width}"
            raise ValueError(
                f"{what} is not divisible by {unit}, the autoencoder's stride times the network's patch: choose "
                f"another image_size, or buckets.multiple_of={unit}"
            )


def token_counts(sizes: Sequence[Size], multiple_of: int) -> list[int]:
    """How many tokens each size makes."""
    return [math.prod(side // multiple_of for side in size) for size in sizes]
