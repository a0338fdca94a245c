"""The grader against pictures whose content is known, whole and spoiled.

Here it meets the drawn world of ``ldm.data.shapes``; nothing in the grader itself knows that world.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from ldm.data.shapes import BACKGROUND, COLOURS, SHAPES, Scene, Thing, sample_scene
from ldm.data.shapes_render import OUTLINES, render
from ldm.evaluation.composition import compare, grade, tally
from ldm.evaluation.things import Found, World, read

WORLD = World(BACKGROUND, COLOURS, OUTLINES)


@dataclass(frozen=True)
class Asked:
    things: tuple[tuple[str, str], ...]
    relation: str | None = None


def clip(image):
    return np.rint(np.clip(image, 0, 255)).astype(np.uint8)


def blurred(image, rng):
    return clip(ndimage.gaussian_filter(image.astype(float), (1.3, 1.3, 0)))


def jpeg(image, rng):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=75)
    return np.array(Image.open(file))


def noisy(image, rng):
    return clip(image + rng.normal(0, 20, image.shape))


def like_a_decoder(image, rng):
    """Soft, off in colour and a little noisy, all at once."""
    soft = ndimage.gaussian_filter(image.astype(float), (0.9, 0.9, 0))
    return clip(soft + rng.normal(0, 8, (1, 1, 3)) + rng.normal(0, 8, image.shape))


DAMAGES = [blurred, jpeg, noisy, like_a_decoder]


def scenes(num, name="grader"):
    return [sample_scene(0, f"{name}/{i}", held_out=i % 2 == 1) for i in range(num)]


def share_right(drawn, asked, damage=None):
    rng = np.random.default_rng(0)
    images = [render(scene) for scene in drawn]
    if damage is not None:
        images = [damage(image, rng) for image in images]
    grades = grade(np.stack(images), [Asked(scene.names, scene.relation) for scene in asked], WORLD)
    return np.mean([one.all_right for one in grades]), grades


def test_own_error_on_drawn_pictures_is_below_half_a_percent():
    truth = scenes(1000)
    share, grades = share_right(truth, truth)
    assert 1 - share < 0.005
    for right, asked in tally(grades).values():
        assert right / asked > 0.995


@pytest.mark.parametrize("damage", DAMAGES)
def test_soft_and_noisy_pictures_are_still_read(damage):
    truth = scenes(150)
    share, _ = share_right(truth, truth, damage)
    assert 1 - share <= 0.01


def other(rng, choices, than):
    return rng.choice([one for one in choices if one != than])


def spoil(scene, rng, **changes):
    i = rng.integers(len(scene.things))
    thing = scene.things[i]
    changed = replace(thing, **{field: change(rng, thing) for field, change in changes.items()})
    return replace(scene, things=(*scene.things[:i], changed, *scene.things[i + 1 :]))


def wrong_colour(scene, rng):
    return spoil(scene, rng, colour=lambda rng, thing: other(rng, list(COLOURS), thing.colour))


def wrong_shape(scene, rng):
    return spoil(scene, rng, shape=lambda rng, thing: other(rng, SHAPES, thing.shape))


def missing_thing(scene, rng):
    return replace(scene, things=scene.things[1:])


def extra_thing(scene, rng):
    """One more of the first thing, where there is room for it, at times touching another."""
    radius = 6.5
    while True:
        x, y = rng.uniform(radius, 64 - radius, 2)
        if all(max(abs(t.x - x), abs(t.y - y)) >= t.radius + radius for t in scene.things):
            return replace(scene, things=(*scene.things, replace(scene.things[0], x=x, y=y, radius=radius)))


def swapped_places(scene, rng):
    a, b = scene.things
    return replace(scene, things=(replace(a, x=b.x, y=b.y), replace(b, x=a.x, y=a.y)))


def swapped_colours(scene, rng):
    a, b = scene.things
    return replace(scene, things=(replace(a, colour=b.colour), replace(b, colour=a.colour)))


def any_scene(scene):
    return True


def with_relation(scene):
    return scene.relation is not None


def with_two_colours_and_shapes(scene):
    return with_relation(scene) and len({*scene.names[0], *scene.names[1]}) == 4


@pytest.mark.parametrize("damage", [None, like_a_decoder])
@pytest.mark.parametrize(
    ("spoilt", "where", "touched", "untouched"),
    [
        (wrong_colour, any_scene, "colour", {"shape", "count"}),
        (wrong_shape, any_scene, "shape", {"colour", "count"}),
        (missing_thing, any_scene, "count", set()),
        (extra_thing, any_scene, "count", {"colour"}),
        (swapped_places, with_relation, "relation", {"colour", "shape", "count"}),
        (swapped_colours, with_two_colours_and_shapes, "relation", {"colour", "shape", "count"}),
    ],
)
def test_a_spoilt_picture_is_wrong_and_the_grade_says_in_what(spoilt, where, touched, untouched, damage):
    rng = np.random.default_rng(1)
    truth = [scene for scene in scenes(120, "spoilt") if where(scene)]
    share, grades = share_right([spoilt(scene, rng) for scene in truth], truth, damage)
    assert share == 0
    counts = tally(grades)
    assert counts[touched][0] <= 0.03 * counts[touched][1]  # an extra thing may flow into its neighbour
    for aspect in untouched:
        assert counts[aspect][0] >= 0.99 * counts[aspect][1]


def test_things_of_one_colour_that_touch_are_still_two():
    for shape in ("circle", "ring", "triangle"):
        scene = Scene((Thing("blue", shape, 24, 32, 8), Thing("blue", shape, 39.5, 32, 8)))
        assert [thing.shape for thing in read(render(scene), WORLD)] == [shape, shape]


def test_things_of_two_colours_that_touch_are_still_two():
    scene = Scene((Thing("blue", "square", 24, 32, 8), Thing("red", "circle", 38, 32, 8)))
    found = {(thing.colour, thing.shape) for thing in read(render(scene), WORLD)}
    assert found == {("blue", "square"), ("red", "circle")}


def test_places_are_read_to_a_fraction_of_a_pixel():
    for shape in SHAPES:
        (thing,) = read(render(Scene((Thing("green", shape, 30.3, 28.8, 10),))), WORLD)
        assert thing.x + 0.5 == pytest.approx(
            30.3, abs=0.3
        )  # a pixel's centre lies at half its index plus one
        assert thing.y + 0.5 == pytest.approx(28.8 - (1.0 if shape == "triangle" else 0), abs=0.5)


def test_specks_are_ignored_and_blots_are_not():
    image = render(Scene((Thing("red", "circle", 20, 20, 9),)))
    image[50:53, 50:53] = COLOURS["blue"]
    assert len(read(image, WORLD)) == 1
    image[44:60, 40:46] = COLOURS["blue"]
    assert [thing.shape for thing in read(image, WORLD)] == ["circle", None]


def test_a_colour_that_is_none_of_the_known_ones_has_no_name():
    image = render(Scene((Thing("red", "square", 32, 32, 10),)))
    image[(image != BACKGROUND).any(axis=-1)] = (20, 20, 20)
    (thing,) = read(image, WORLD)
    assert (thing.colour, thing.shape) == (None, "square")


@pytest.mark.parametrize("value", [0, 255, 128])
def test_pictures_of_nothing_are_wrong_and_no_error(value):
    image = np.full((1, 64, 64, 3), value, np.uint8)
    (one,) = grade(image, [Asked((("red", "circle"),))], WORLD)
    assert not one.all_right


def test_noise_is_wrong_and_no_error():
    images = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    assert not any(one.all_right for one in grade(images, [Asked((("red", "circle"),))] * 4, WORLD))


def test_both_layouts_of_pictures_are_read_alike():
    truth = scenes(5)
    images = np.stack([render(scene) for scene in truth])
    asked = [Asked(scene.names, scene.relation) for scene in truth]
    assert grade(images, asked, WORLD) == grade(images.transpose(0, 3, 1, 2), asked, WORLD)


def test_other_pictures_are_refused():
    with pytest.raises(ValueError, match="uint8"):
        grade(np.zeros((1, 3, 64, 64)), [Asked(())], WORLD)


def test_a_larger_picture_is_read_too():
    truth = scenes(20)
    for scene in truth:
        found = read(render(scene, size=128), WORLD)
        assert compare(found, Asked(scene.names)).all_right


def test_a_relation_needs_more_distance_along_its_axis_than_across():
    a, b = ("red", "circle"), ("blue", "ring")
    for x, y, right in [(10, 0, True), (10, 9, True), (10, 11, False), (-10, 0, False), (0, 10, False)]:
        found = [Found(*a, 0, 0, 1.0), Found(*b, x, y, 1.0)]
        assert compare(found, Asked((a, b), "left of")).relation is right
        assert compare(found, Asked((b, a), "right of")).relation is right
