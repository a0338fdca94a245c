"""A small world of coloured shapes, made so that text-to-image training can be learned and graded exactly.

Three kinds of scene, each about one hard part of following a prompt:

    single     one thing: its colour belongs to its shape
    count      two to four things alike: their number
    relation   two different things: which colour belongs to which shape, and who stands where

Some colour-shape and some count-colour pairs are held out: they never occur in training or validation
pictures, only in prompts that ask whether a model puts known parts together in a new way.

A scene follows from (seed, key) alone, so pictures can be made in any order, on any number of processes.
Drawing is in ``shapes_render``, wording in ``shapes_captions``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from ldm.randomness import address

SIZE = 64  # pixels; positions and radii below are in pixels of this canvas

BACKGROUND = (244, 242, 236)
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (217, 42, 42),
    "green": (46, 158, 62),
    "blue": (38, 74, 214),
    "yellow": (244, 196, 26),
    "purple": (150, 48, 190),
    "cyan": (44, 196, 214),
}
SHAPES = ("circle", "square", "triangle", "cross", "ring")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
RELATIONS = tuple(OPPOSITE)

# One pair per shape and no colour twice: every colour and every shape is still seen with many partners.
HELD_OUT_PAIRS = frozenset(
    {("red", "ring"), ("green", "triangle"), ("blue", "cross"), ("yellow", "circle"), ("purple", "square")}
)
HELD_OUT_COUNTS = frozenset({(2, "cyan"), (3, "green"), (3, "purple"), (4, "red")})

KINDS = ("single", "count", "relation")
KIND_SHARES = (0.2, 0.4, 0.4)
MARGIN = 3.0  # pixels kept free between things, and between things and the border

_SINGLE_RADIUS = (10.0, 16.0)
_COUNT_RADIUS = {2: (8.5, 11.5), 3: (8.0, 10.5), 4: (7.5, 9.5)}  # more things leave less room for each
_RELATION_RADIUS = (9.0, 12.0)
_MOST_SLANT = 0.6  # distance across a relation's axis, as a share of the distance along it
_LAYOUTS_AT_ONCE = 256


@dataclass(frozen=True)
class Thing:
    """One shape; it fills a box of ``2 * radius`` around (x, y), in pixels, y downwards."""

    colour: str
    shape: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """What is in a picture. With a relation, things[0] stands in that relation to things[1]."""

    things: tuple[Thing, ...]
    relation: str | None = None

    @property
    def kind(self) -> str:
        """One of ``KINDS``."""
        if self.relation is not None:
            return "relation"
        return "single" if len(self.things) == 1 else "count"

    @property
    def names(self) -> tuple[tuple[str, str], ...]:
        """(colour, shape) of each thing."""
        return tuple((thing.colour, thing.shape) for thing in self.things)

    @property
    def is_held_out(self) -> bool:
        """Whether a pair is in it that training never shows."""
        return _held_out(self.names, self.relation)


def sample_scene(
    seed: int, key: str, *, held_out: bool, shares: tuple[float, float, float] = KIND_SHARES
) -> Scene:
    """The scene of one sample.

    Args:
        seed: of the data set.
        key: of the sample, unique in the data set; the same (seed, key) is the same scene.
        held_out: False for a scene without any held-out pair, True for a scene with at least one.
        shares: how often each of ``KINDS`` is drawn; they sum to 1.
    """
    rng = np.random.default_rng(address(seed, "scene", key))
    kind = KINDS[rng.choice(len(KINDS), p=shares)]
    while True:  # a sixth of the draws or more fit, whatever is asked for
        names, relation = _contents(rng, kind)
        if _held_out(names, relation) == held_out:
            break
    radii, centres = _layout(rng, len(names), relation)
    things = tuple(
        Thing(colour, shape, round(float(x), 2), round(float(y), 2), round(float(radius), 2))
        for (colour, shape), (x, y), radius in zip(names, centres, radii, strict=True)
    )
    return Scene(things, relation)


def _held_out(names: tuple[tuple[str, str], ...], relation: str | None) -> bool:
    counted = relation is None and len(names) > 1
    return any(name in HELD_OUT_PAIRS for name in names) or (
        counted and (len(names), names[0][0]) in HELD_OUT_COUNTS
    )


def _contents(rng: Generator, kind: str) -> tuple[tuple[tuple[str, str], ...], str | None]:
    """Which things, and in which relation: ((colour, shape), ...), relation."""
    first, second = _name(rng), _name(rng)
    if kind == "single":
        return (first,), None
    if kind == "count":
        return (first,) * int(rng.integers(2, 5)), None
    while second == first:
        second = _name(rng)
    return (first, second), RELATIONS[rng.integers(len(RELATIONS))]


def _name(rng: Generator) -> tuple[str, str]:
    return list(COLOURS)[rng.integers(len(COLOURS))], SHAPES[rng.integers(len(SHAPES))]


def _layout(rng: Generator, num: int, relation: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Radii (num,) and centres (num, 2), uniform over all layouts that keep the margins and the relation."""
    if relation is not None:
        radii = rng.uniform(*_RELATION_RADIUS, size=num)
    elif num == 1:
        radii = rng.uniform(*_SINGLE_RADIUS, size=num)
    else:
        radii = np.full(num, rng.uniform(*_COUNT_RADIUS[num]))
    nearest = (radii + MARGIN)[:, None]  # to the border, (num, 1)
    while True:
        centres = rng.uniform(nearest, SIZE - nearest, size=(_LAYOUTS_AT_ONCE, num, 2))
        fits = _apart(centres, radii)
        if relation is not None:
            fits &= _related(centres, radii, relation)
        if fits.any():
            return radii, centres[fits.argmax()]


def _apart(centres: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Whether all boxes keep the margin: centres (n, num, 2), radii (num,) -> (n,) bool."""
    distance = np.abs(centres[:, :, None] - centres[:, None]).max(axis=-1)  # (n, num, num)
    least = radii[:, None] + radii + MARGIN
    np.fill_diagonal(least, 0.0)
    return (distance >= least).all(axis=(1, 2))


def _related(centres: np.ndarray, radii: np.ndarray, relation: str) -> np.ndarray:
    """Whether the first thing clearly stands so to the second: boxes apart along the axis, little slant."""
    axis = 0 if relation in ("left of", "right of") else 1
    sign = 1.0 if relation in ("left of", "above") else -1.0
    offset = sign * (centres[:, 1] - centres[:, 0])  # (n, 2), positive along the axis when the relation holds
    along, across = offset[:, axis], np.abs(offset[:, 1 - axis])
    return (along >= radii.sum() + MARGIN) & (across <= _MOST_SLANT * along)
