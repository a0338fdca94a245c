"""Words for scenes of coloured shapes: captions to train on, and prompts to grade by.

Every phrasing of a scene says the same facts in at most 16 words; which one is shown at which visit is for
the data pipeline to draw.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ldm.data.shapes import OPPOSITE, Scene, sample_scene
from ldm.randomness import address

_NUMBERS = {2: "two", 3: "three", 4: "four"}
_LONG = {"left of": "to the left of", "right of": "to the right of", "above": "over", "below": "under"}
_WITH = {"left of": "on its left", "right of": "on its right", "above": "above it", "below": "below it"}
_PLACE = {
    "left of": "on the left",
    "right of": "on the right",
    "above": "at the top",
    "below": "at the bottom",
}


@dataclass(frozen=True)
class Prompt:
    """A prompt and what a picture of it must show."""

    text: str
    things: tuple[tuple[str, str], ...]  # (colour, shape) of every thing, no more and no fewer
    relation: str | None  # of things[0] to things[1]
    kind: str  # "single", "count" or "relation"
    seen: bool  # False: asks for a held-out pair, which no training picture shows


def captions(scene: Scene) -> list[str]:
    """All phrasings of a scene, in a fixed order."""
    colour, shape = scene.names[0]
    if scene.kind == "single":
        return _single(colour, shape)
    if scene.kind == "count":
        return _count(len(scene.things), colour, shape)
    assert scene.relation is not None
    first, second = (f"a {colour} {shape}" for colour, shape in scene.names)
    return _relation(first, scene.relation, second)


def evaluation_prompts(num: int, seed: int) -> list[Prompt]:
    """``num`` prompts with kinds mixed like in training; seen and never-seen ones take turns.

    Their scenes are drawn apart from all training and validation scenes. The first n prompts are the same
    whatever ``num`` is.
    """
    prompts = []
    for i in range(num):
        seen = i % 2 == 0
        key = f"evaluation/{i:06d}"
        scene = sample_scene(seed, key, held_out=not seen)
        phrasings = captions(scene)
        choice = np.random.default_rng(address(seed, "phrasing", key)).integers(len(phrasings))
        prompts.append(Prompt(phrasings[choice], scene.names, scene.relation, scene.kind, seen))
    return prompts


def _single(colour: str, shape: str) -> list[str]:
    return [
        f"a {colour} {shape}",
        f"one {colour} {shape}",
        f"1 {colour} {shape}",
        f"a single {colour} {shape}",
        f"there is a {colour} {shape}",
        f"a picture of a {colour} {shape}",
        f"a {shape} that is {colour}",
        f"a {shape} in {colour}",
    ]


def _count(num: int, colour: str, shape: str) -> list[str]:
    word = _NUMBERS[num]
    many = f"{shape}es" if shape.endswith("s") else f"{shape}s"
    return [
        f"{word} {colour} {many}",
        f"{num} {colour} {many}",
        f"there are {word} {colour} {many}",
        f"a picture of {num} {colour} {many}",
        f"a group of {word} {colour} {many}",
        f"{colour} {many}, {word} of them",
        f"{word} {many} that are {colour}",
        f"{num} {many} in {colour}",
    ]


def _relation(first: str, relation: str, second: str) -> list[str]:
    out = [f"{first} {_PLACE[relation]} and {second} {_PLACE[OPPOSITE[relation]]}"]
    for this, stands, that in ((first, relation, second), (second, OPPOSITE[relation], first)):
        out += [
            f"{this} {stands} {that}",
            f"{this} {_LONG[stands]} {that}",
            f"{this} is {stands} {that}",
            f"{that} with {this} {_WITH[stands]}",
        ]
    return out
