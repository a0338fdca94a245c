"""Every visit is given one of a sample's texts, by weight, tied to sample and visit; nothing is invented or lost."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from ldm.data.captions import CaptionRecipe, as_fields, chance, texts_of

TEXTS = {"txt": ["plain"], "captions": ["first", "second"], "tags": ["a, b, c, d, e"]}
N = 2000


def drawn(recipe: CaptionRecipe, fields: dict[str, float], *, num: int = N, texts: dict = TEXTS) -> list[str]:
    return [recipe.draw(texts, fields, seed=0, key=f"key {i}", visit=0) for i in range(num)]


def test_chances_are_uniform_repeatable_and_apart_by_every_part_of_their_name() -> None:
    draws = np.array([chance(0, "crop", f"key {i}", 0) for i in range(4000)])
    assert draws.min() >= 0 and draws.max() < 1
    assert abs(draws.mean() - 1 / 2) < 5 / np.sqrt(12 * 4000)
    names = [
        (0, "crop", "a", 0),
        (1, "crop", "a", 0),
        (0, "flip", "a", 0),
        (0, "crop", "b", 0),
        (0, "crop", "a", 1),
    ]
    assert len({chance(*name) for name in names}) == len(names)
    assert chance(*names[0]) == chance(*names[0])


def test_fields_are_drawn_by_weight_and_their_texts_alike() -> None:
    counts = Counter(drawn(CaptionRecipe(), {"txt": 1.0, "captions": 3.0}))
    assert set(counts) == {"plain", "first", "second"}
    for text, share in {"plain": 1 / 4, "first": 3 / 8, "second": 3 / 8}.items():
        assert abs(counts[text] / N - share) < 5 * np.sqrt(share * (1 - share) / N)


def test_a_field_that_a_sample_lacks_leaves_its_weight_to_the_others() -> None:
    counts = Counter(drawn(CaptionRecipe(), {"absent": 100.0, "txt": 1.0, "captions": 1.0}))
    assert abs(counts["plain"] / N - 1 / 2) < 5 / np.sqrt(4 * N)
    assert set(drawn(CaptionRecipe(), {"absent": 1.0}, num=5)) == {""}


def test_a_visit_has_its_caption_whatever_else_is_drawn() -> None:
    recipe = CaptionRecipe(shuffle_tags=True, tag_dropout=0.3, templates=["{caption}!", "{caption}?"])
    fields = {"tags": 1.0}
    once = [recipe.draw(TEXTS, fields, seed=0, key="k", visit=visit) for visit in range(50)]
    again = [recipe.draw(TEXTS, fields, seed=0, key="k", visit=visit) for visit in reversed(range(50))]
    assert once == again[::-1] and len(set(once)) > 25
    assert once != [recipe.draw(TEXTS, fields, seed=1, key="k", visit=visit) for visit in range(50)]


def test_tags_are_shuffled_evenly_and_the_first_stay() -> None:
    captions = drawn(CaptionRecipe(shuffle_tags=True, keep_tags=1), {"tags": 1.0})
    split = [caption.split(", ") for caption in captions]
    assert all(tags[0] == "a" and sorted(tags) == list("abcde") for tags in split)
    for tag in "bcde":
        share = sum(tags[1] == tag for tags in split) / N
        assert abs(share - 1 / 4) < 5 * np.sqrt(3 / 16 / N)


def test_tags_are_left_out_as_often_as_told_but_never_all() -> None:
    split = [caption.split(", ") for caption in drawn(CaptionRecipe(tag_dropout=0.25), {"tags": 1.0})]
    assert all(tags == sorted(tags) and tags != [""] for tags in split)  # in their order
    assert abs(sum(map(len, split)) / (5 * N) - 0.75) < 5 * np.sqrt(0.1875 / (5 * N)) + 0.001
    hard = drawn(CaptionRecipe(tag_dropout=0.99), {"tags": 1.0})
    assert "" not in hard and {caption for caption in hard if len(caption) == 1} == set("abcde")
    kept = drawn(CaptionRecipe(tag_dropout=0.99, keep_tags=2), {"tags": 1.0})
    assert all(caption.startswith("a, b") for caption in kept)


def test_templates_take_turns_and_leave_the_null_condition_alone() -> None:
    recipe = CaptionRecipe(templates=["a photo of {caption}", "{caption}, drawn"])
    counts = Counter(drawn(recipe, {"txt": 1.0}))
    assert set(counts) == {"a photo of plain", "plain, drawn"}
    assert abs(counts["plain, drawn"] / N - 1 / 2) < 5 / np.sqrt(4 * N)
    assert recipe.draw({}, {"txt": 1.0}, seed=0, key="k", visit=0) == ""
    braces = CaptionRecipe(templates=["{caption} {x}"]).draw(
        {"txt": ["{y}"]}, {"txt": 1.0}, seed=0, key="k", visit=0
    )
    assert braces == "{y} {x}"  # nothing is formatted but the caption's place


@pytest.mark.parametrize("templates", [None, ["1 {caption}", "2 {caption}", "3 {caption}"]])
def test_every_caption_stands_at_its_place(templates: list[str] | None) -> None:
    """What a cache of embeddings relies on: the place of a visit, by counts alone, is the caption it draws."""
    recipe, fields = CaptionRecipe(templates=templates), {"captions": 2.0, "absent": 1.0, "txt": 1.0}
    said = ["first", "second", "plain"]
    every = recipe.every(said)
    assert len(every) == 3 * len(templates or [""]) == len(set(every))
    seen = set()
    for visit in range(200):
        place = recipe.place([2, 0, 1], fields, seed=0, key="k", visit=visit)
        assert every[place] == recipe.draw(TEXTS, fields, seed=0, key="k", visit=visit)
        seen.add(place)
    assert seen == set(range(len(every)))
    assert recipe.every([]) == [""] and recipe.place([0, 0, 0], fields, seed=0, key="k", visit=0) == 0


def test_captions_of_shuffled_tags_cannot_be_listed() -> None:
    with pytest.raises(ValueError, match="shuffle_tags=false"):
        CaptionRecipe(shuffle_tags=True).every(["a, b"])


def test_all_texts_of_a_sample_are_found_and_nothing_else() -> None:
    meta = {
        "captions": [" a ", "", "b"],
        "one": "c",
        "number": 3,
        "mixed": ["d", 1],
        "empty": "",
        "none": None,
    }
    found = texts_of("\ufeff x \n".encode(), json.dumps(meta).encode())
    assert found == {"txt": ["x"], "captions": ["a", "b"], "one": ["c"]}
    assert texts_of(b"caf\xe9", None) == {"txt": ["caf\ufffd"]}
    for damaged in (b"{", b"\xff\xfe", b"[1]", b"3", b""):
        assert texts_of(None, damaged) == {}
    assert texts_of(b" \n", None) == {}


def test_options_that_are_none_are_named() -> None:
    for options, message in (
        ({"missing": "drop"}, "skip, empty, error"),
        ({"templates": ["a photo"]}, "has no {caption}"),
        ({"templates": []}, "null"),
        ({"tag_dropout": 1.0}, "tag_dropout=1.0"),
        ({"keep_tags": -1}, "keep_tags"),
        ({"tag_separator": ""}, "tag_separator"),
    ):
        with pytest.raises(ValueError, match=message.replace("{", r"\{").replace("}", r"\}")):
            CaptionRecipe(**options)  # type: ignore[arg-type]
    assert as_fields("txt") == {"txt": 1.0} and as_fields({"a": 2, "b": 1}) == {"a": 2.0, "b": 1.0}
    for wrong in ({}, {"txt": 0.0}, {"txt": -1.0}):
        with pytest.raises(ValueError, match="weights above 0"):
            as_fields(wrong)
