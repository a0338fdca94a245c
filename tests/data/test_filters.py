"""Filters say what Python would say, of columns; and nothing else than a condition gets through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ldm.data.filters import Filter
from ldm.data.index import SampleIndex, build_index
from ldm.data.shards import ShardWriter, find_shards
from tests.data.made import encoded

SAMPLES: list[dict[str, Any]] = [
    *(
        {
            "aesthetic": float(i),
            "punsafe": i / 20,
            "watermark": i % 3 == 0,
            "language": ("en", "de", "fr")[i % 3],
        }
        | {"width": 9}
        for i in range(12)
    ),
    {"clip-score": 0.5},
    {"aesthetic": 7, "language": "en"},
]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("shards")
    with ShardWriter(folder, samples_per_shard=5) as writer:
        for i, sample in enumerate(SAMPLES):
            picture = encoded(np.zeros((4 + i, 10, 3), np.uint8), "PNG")
            writer.write(picture, "png", "x" * i, sample | {"url": f"long text {i}" * 9})
    return find_shards(folder)


def taken(shards: list[Path], *filters: str) -> list[int]:
    index: SampleIndex = build_index(shards, filters=filters, missing="empty")
    assert len(index) + index.num_filtered == len(SAMPLES)
    return [int(index.key(i)[-4:]) + 5 * int(index.key(i)[4]) for i in range(len(index))]


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("aesthetic > 5", lambda i, s: s.get("aesthetic", -1) > 5),
        ("aesthetic > 5 and punsafe < 0.4", lambda i, s: s.get("aesthetic", -1) > 5 and s.get("punsafe", 9) < 0.4),
        ("min_side >= 8", lambda i, s: min(4 + i, 10) >= 8),
        ("width == 10 and json.width == 9", lambda i, s: "width" in s),
        ("not watermark", lambda i, s: not s.get("watermark", False)),
        ("watermark", lambda i, s: s.get("watermark", False)),
        ("language in ['en', 'fr']", lambda i, s: s.get("language") in ("en", "fr")),
        ("language not in ['en']", lambda i, s: s.get("language", "en") != "en"),
        ("language != 'en'", lambda i, s: s.get("language", "en") != "en"),
        ("json['clip-score'] > 0.4", lambda i, s: "clip-score" in s),
        ("2 < aesthetic <= 7", lambda i, s: 2 < s.get("aesthetic", 0) <= 7),
        ("aspect > 1", lambda i, s: 10 / (4 + i) > 1),
        ("aesthetic / 2 + punsafe * 10 - 1 > 4", lambda i, s: i < 12 and i / 2 + i / 2 > 5),
        ("caption_length >= 3 or aesthetic == 1", lambda i, s: i >= 3 or i == 1),
        ("format == 'png' and aesthetic > -1", lambda i, s: "aesthetic" in s),
        ("aesthetic == aesthetic", lambda i, s: "aesthetic" in s),
    ],
)  # fmt: skip
def test_a_filter_means_what_it_says(shards: list[Path], text: str, meant: Any) -> None:
    assert taken(shards, text) == [i for i, sample in enumerate(SAMPLES) if meant(i, sample)]


def test_several_filters_must_all_hold_and_reading_follows(shards: list[Path]) -> None:
    assert taken(shards, "aesthetic > 3", "aesthetic < 6") == [4, 5]
    index = build_index(shards, filters=["aesthetic > 3", "aesthetic < 6"])
    assert [index.read(i, "txt") for i in range(2)] == [b"xxxx", b"xxxxx"]
    assert index.column("height").tolist() == [8, 9]
    assert [index.find(index.key(i)) for i in range(2)] == [0, 1]
    with pytest.raises(KeyError):
        index.find("00000/000000000")
    assert index.fingerprint != build_index(shards).fingerprint


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("aesthetik > 5", "no sample has a 'aesthetik'; did you mean 'aesthetic'"),
        ("url == 'x'", "json.url holds texts of too many kinds"),
        ("aesthetic >", "no condition"),
        ("aesthetic > 99", "none of 13 samples passes the filters aesthetic > 99"),
        ("aesthetic > 'x'", "are a number and a text"),
        ("language + 1 > 2", "calculates with what is no number"),
        ("aesthetic in language", "'in' needs a list"),
        ("__import__('os').system('true')", "is not allowed"),
        ("().__class__", "is not allowed"),
        ("[x for x in (1,)]", "is not allowed"),
        ("aesthetic ** 9 > 1", "is not allowed"),
        ("lambda: 1", "is not allowed"),
        ("json.x.y > 1", "is not allowed"),
        ("(aesthetic := 3)", "is not allowed"),
        ("-" * 100_000 + "1", "no condition"),
    ],
)
def test_what_is_no_condition_is_refused_with_its_place(shards: list[Path], text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        build_index(shards, filters=[text])


def test_names_are_listed() -> None:
    assert Filter("a > 1 and (b < width or not c)").names == ["json.a", "json.b", "json.c", "width"]
