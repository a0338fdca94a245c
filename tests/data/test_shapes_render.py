from __future__ import annotations

import math

import numpy as np
import pytest

from ldm.data.shapes import BACKGROUND, COLOURS, SHAPES, SIZE, Scene, Thing, sample_scene
from ldm.data.shapes_render import OUTLINES, render

AREAS = {  # of the outline in its box of side 2, by geometry
    "circle": math.pi,
    "square": 1.8**2,
    "triangle": 1.8,
    "cross": 2 * 2 * 0.66 - 0.66**2,
    "ring": math.pi * (1 - 0.55**2),
}


def coverage(image: np.ndarray, colour: str) -> np.ndarray:
    direction = np.array(COLOURS[colour], float) - BACKGROUND
    return (image.astype(float) - BACKGROUND) @ direction / (direction @ direction)


def test_every_shape_has_an_outline():
    assert set(OUTLINES) == set(SHAPES)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("radius", [7.0, 12.3])
def test_covered_area_is_the_area_of_the_shape(shape, radius):
    image = render(Scene((Thing("blue", shape, 30.3, 33.8, radius),)))
    assert coverage(image, "blue").sum() == pytest.approx(AREAS[shape] * radius**2, rel=0.02)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_thing_stays_in_its_box_and_moves_with_it(shape):
    image = render(Scene((Thing("red", shape, 20.0, 40.0, 8.0),)))
    outside = np.ones((SIZE, SIZE), bool)
    outside[32:48, 12:28] = False
    assert (image[outside] == BACKGROUND).all()
    moved = render(Scene((Thing("red", shape, 25.0, 38.0, 8.0),)))
    assert (np.roll(image, (-2, 5), axis=(0, 1)) == moved).all()


def test_edges_are_mixed_between_thing_and_background():
    share = coverage(render(Scene((Thing("green", "circle", 32.0, 32.0, 10.0),))), "green")
    edge = share[(share > 0.05) & (share < 0.95)]
    assert len(edge) > 40  # about one pixel in each place along the edge
    assert share.max() == pytest.approx(1.0, abs=0.01)


def test_a_larger_picture_shows_the_same_scene():
    scene = sample_scene(0, "a", held_out=False)
    large = render(scene, size=2 * SIZE).astype(float)
    small = large.reshape(SIZE, 2, SIZE, 2, 3).mean(axis=(1, 3))
    assert np.abs(small - render(scene)).max() < 20  # of 255: either is right to 1/16 of a pixel
