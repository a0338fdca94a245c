from __future__ import annotations

import re
from collections import Counter

from ldm.data.shapes import COLOURS, OPPOSITE, SHAPES, Scene, Thing, sample_scene
from ldm.data.shapes_captions import captions, evaluation_prompts

THING = rf"a ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"


WORDS = {
    "left of": {"left"},
    "right of": {"right"},
    "above": {"above", "over", "top"},
    "below": {"below", "under", "bottom"},
}


def relation_of(caption: str) -> tuple[tuple[str, str], str, tuple[str, str]]:
    """Who stands how to whom, as a reader takes it from the words."""
    first, second = re.findall(THING, caption)
    between, after = re.split(THING, caption)[3::3]
    turned = "with" in between  # "a ring with a cross on its left" tells of the cross
    said = set((after if turned else between).split())
    (relation,) = (name for name, words in WORDS.items() if words & said)
    return (second, relation, first) if turned else (first, relation, second)


def test_all_phrasings_are_different_short_and_many():
    for i in range(300):
        texts = captions(sample_scene(0, str(i), held_out=False))
        assert len(set(texts)) == len(texts) >= 6
        assert all(len(text.split()) <= 16 for text in texts)


def test_a_relation_means_the_same_in_all_its_words():
    for relation in OPPOSITE:
        scene = Scene((Thing("red", "circle", 0, 0, 1), Thing("blue", "ring", 0, 0, 1)), relation)
        for text in captions(scene):
            first, found, second = relation_of(text)
            if first != ("red", "circle"):
                first, found, second = second, OPPOSITE[found], first
            assert (first, found, second) == (("red", "circle"), relation, ("blue", "ring")), text


def test_relations_are_told_from_both_sides():
    for relation in OPPOSITE:
        scene = Scene((Thing("red", "circle", 0, 0, 1), Thing("blue", "ring", 0, 0, 1)), relation)
        texts = captions(scene)
        assert f"a red circle {relation} a blue ring" in texts
        assert f"a blue ring {OPPOSITE[relation]} a red circle" in texts


def test_numbers_are_words_and_digits():
    texts = captions(Scene((Thing("red", "cross", 0, 0, 1),) * 3))
    assert "three red crosses" in texts
    assert "3 red crosses" in texts


def test_prompts_take_turns_and_do_not_depend_on_their_number():
    prompts = evaluation_prompts(100, seed=1)
    assert prompts[:30] == evaluation_prompts(30, seed=1)
    assert prompts != evaluation_prompts(100, seed=2)
    assert [prompt.seen for prompt in prompts] == [True, False] * 50
    assert set(Counter(prompt.kind for prompt in prompts)) == {"single", "count", "relation"}
