from __future__ import annotations

import itertools
from collections import Counter

import pytest

from ldm.data.shapes import (
    BACKGROUND,
    COLOURS,
    HELD_OUT_COUNTS,
    HELD_OUT_PAIRS,
    KIND_SHARES,
    KINDS,
    MARGIN,
    OPPOSITE,
    SHAPES,
    SIZE,
    sample_scene,
)

NUM = 3000


@pytest.fixture(scope="module")
def seen():
    return [sample_scene(0, f"train/{i}", held_out=False) for i in range(NUM)]


@pytest.fixture(scope="module")
def never_seen():
    return [sample_scene(0, f"train/{i}", held_out=True) for i in range(NUM)]


def test_a_scene_follows_from_seed_and_key():
    scene = sample_scene(3, "train/7", held_out=False)
    assert scene == sample_scene(3, "train/7", held_out=False)
    assert scene != sample_scene(4, "train/7", held_out=False)
    assert scene != sample_scene(3, "train/8", held_out=False)


def test_things_keep_apart_and_off_the_border(seen, never_seen):
    rounding = 0.03  # scenes are kept to a hundredth of a pixel
    for scene in [*seen, *never_seen]:
        for thing in scene.things:
            assert min(thing.x, thing.y) - thing.radius >= MARGIN - rounding
            assert max(thing.x, thing.y) + thing.radius <= SIZE - MARGIN + rounding
        for a, b in itertools.combinations(scene.things, 2):
            gap = max(abs(a.x - b.x), abs(a.y - b.y)) - a.radius - b.radius
            assert gap >= MARGIN - rounding


def test_a_relation_holds_clearly_between_two_different_things(seen):
    relations = [scene for scene in seen if scene.relation]
    for scene in relations:
        a, b = scene.things
        assert (a.colour, a.shape) != (b.colour, b.shape)
        right, down = b.x - a.x, b.y - a.y
        along, across = {
            "left of": (right, down),
            "right of": (-right, down),
            "above": (down, right),
            "below": (-down, right),
        }[scene.relation]
        assert along > a.radius + b.radius
        assert along > abs(across)
    assert {scene.relation for scene in relations} == set(OPPOSITE)


def test_kinds_are_mixed_alike_whether_seen_or_not(seen, never_seen):
    for scenes in (seen, never_seen):
        shares = Counter(scene.kind for scene in scenes)
        for kind, share in zip(KINDS, KIND_SHARES, strict=True):
            assert shares[kind] / NUM == pytest.approx(share, abs=0.04)


def test_things_that_are_counted_are_alike(seen):
    counts = [scene for scene in seen if scene.kind == "count"]
    assert all(len(set(scene.names)) == 1 for scene in counts)
    assert {len(scene.things) for scene in counts} == {2, 3, 4}


def test_held_out_pairs_are_where_they_belong(seen, never_seen):
    def pairs(scene):
        return any(name in HELD_OUT_PAIRS for name in scene.names)

    def counts(scene):
        return scene.kind == "count" and (len(scene.things), scene.names[0][0]) in HELD_OUT_COUNTS

    assert not any(pairs(scene) or counts(scene) or scene.is_held_out for scene in seen)
    assert all((pairs(scene) or counts(scene)) and scene.is_held_out for scene in never_seen)
    assert any(counts(scene) and not pairs(scene) for scene in never_seen)
    # Every colour, shape and number is still seen, and each pair that is allowed.
    assert {name for scene in seen for name in scene.names} == {
        (colour, shape) for colour in COLOURS for shape in SHAPES
    } - HELD_OUT_PAIRS
    assert len({(len(s.things), s.names[0][0]) for s in seen if s.kind == "count"}) == 18 - len(
        HELD_OUT_COUNTS
    )


def test_colours_are_far_from_each_other_and_from_the_background():
    palette = [BACKGROUND, *COLOURS.values()]
    for a, b in itertools.combinations(palette, 2):
        assert sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) ** 0.5 > 100
