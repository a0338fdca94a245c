"""What is in shards: sizes, captions, duplicates, what cannot be read. Every sample is read once, shard by shard."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ldm.data.captions import texts_of
from ldm.data.decode import UnreadablePicture
from ldm.data.index import FORMATS, SampleIndex, Skipped, build_index
from ldm.data.pixels import decode_pixels
from ldm.data.progress import progress

WORD = re.compile(r"\w+")
MOST_WORDS = 100_000  # different ones that are counted in a shard: a caption field may as well hold hashes
SIDE = 64  # pixels decoded of each picture, about: damage shows all the same, for all of its bytes are read


@dataclass
class Survey:
    """What is there. Of captions, those of the fields that were asked for."""

    index: SampleIndex
    captions_per_sample: np.ndarray  # (N,)
    characters: np.ndarray  # (M,) of each caption
    words: np.ndarray  # (M,)
    vocabulary: Counter[str]
    captions: np.ndarray  # (M,) uint64 hashes
    pictures: np.ndarray  # (N,) uint64 hashes of the pictures' bytes
    looks: np.ndarray  # (N,) uint64, alike for pictures that look alike; 0 for those without any structure
    fields: Counter[str]  # field -> samples with a text in it
    bad: list[Skipped] = field(default_factory=list)
    decoded: bool = True  # whether pictures were decoded

    @property
    def formats(self) -> dict[str, int]:
        counts = np.bincount(self.index.column("format"), minlength=len(FORMATS))
        return {name or "unreadable": int(n) for name, n in zip(FORMATS, counts, strict=True) if n}


class _OfShard(NamedTuple):
    per_sample: np.ndarray
    characters: np.ndarray
    words: np.ndarray
    vocabulary: Counter[str]
    captions: np.ndarray
    pictures: np.ndarray
    looks: np.ndarray
    fields: Counter[str]
    bad: list[Skipped]


def survey(
    shards: Sequence[Path], fields: Sequence[str], *, decode: bool = True, num_workers: int = 0
) -> Survey:
    """Look at every sample.

    Args:
        shards: plain tar files.
        fields: where captions come from.
        decode: also decode every picture, to find damaged ones and those that look alike.
        num_workers: processes; 0 does it in this one.

    Raises:
        ValueError: not one sample in all the shards.
    """
    index = build_index(shards, caption_fields=None)
    look = partial(_look, fields=tuple(fields), decode=decode)
    found = []
    with progress("looking", total=len(index)) as advance:
        for one in _each(look, shards, num_workers):
            found.append(one)
            advance(len(one.per_sample))
    columns = [np.concatenate(parts) for parts in zip(*((*one[:3], *one[4:7]) for one in found), strict=True)]
    per_sample, characters, words, captions, pictures, looks = columns
    vocabulary, there = Counter[str](), Counter[str]()
    for one in found:
        vocabulary.update(one.vocabulary)
        there.update(one.fields)
    return Survey(
        index=index,
        captions_per_sample=per_sample,
        characters=characters,
        words=words,
        vocabulary=vocabulary,
        captions=captions,
        pictures=pictures,
        looks=looks,
        fields=there,
        bad=[bad for one in found for bad in one.bad],
        decoded=decode,
    )


def _each(look: partial[_OfShard], shards: Sequence[Path], num_workers: int) -> Iterator[_OfShard]:
    if num_workers < 2:
        yield from map(look, shards)
        return
    with ProcessPoolExecutor(num_workers) as pool:
        yield from pool.map(look, shards)


def _look(shard: Path, *, fields: tuple[str, ...], decode: bool) -> _OfShard:
    try:
        index = build_index([shard], caption_fields=None)
    except ValueError:  # no sound sample in this one; the index of all says why
        none, hashes = np.zeros(0, np.int32), np.zeros(0, np.uint64)
        return _OfShard(none, none, none, Counter(), hashes, hashes, hashes, Counter(), [])
    per_sample, characters, words, captions = [], [], [], []
    pictures, looks = np.zeros(len(index), np.uint64), np.zeros(len(index), np.uint64)
    vocabulary, there, bad = Counter[str](), Counter[str](), []
    for i in range(len(index)):
        texts = texts_of(index.read(i, "txt"), index.read(i, "json"))
        there.update(texts.keys())
        said = [text for name in fields for text in texts.get(name, ())]
        per_sample.append(len(said))
        for text in said:
            found = WORD.findall(text.lower())
            characters.append(len(text))
            words.append(len(found))
            captions.append(hashed(text.encode("utf-8", "surrogatepass")))
            vocabulary.update(
                found if len(vocabulary) < MOST_WORDS else (w for w in found if w in vocabulary)
            )
        picture = index.read(i, "picture") or b""
        pictures[i] = hashed(picture)
        if decode:
            try:
                looks[i] = look_of(decode_pixels(picture, shown=(SIDE, SIDE)).values)
            except UnreadablePicture as error:
                bad.append(Skipped(shard.name, index.key(i), str(error)))
    return _OfShard(
        np.array(per_sample, np.int32),
        np.array(characters, np.int32),
        np.array(words, np.int32),
        vocabulary,
        np.array(captions, np.uint64),
        pictures,
        looks,
        there,
        bad,
    )


def hashed(data: bytes) -> int:
    """64 bits: among 100 million different ones, two agree with a chance of one in 3,700."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def look_of(values: np.ndarray) -> int:
    """(h, w, 3) uint8 -> 64 bits, whether it gets brighter from left to right at each of 8 x 8 places.

    The same, or nearly, for copies of a picture in another size, format or quality; 0 where it has no structure.
    """
    small = Image.fromarray(values).convert("L").resize((9, 8), Image.Resampling.BOX)
    grey = np.asarray(small, np.int16)
    if grey.max() - grey.min() < 8:
        return 0
    return int.from_bytes(np.packbits(np.diff(grey, axis=1) > 0).tobytes(), "little")


def groups(hashes: np.ndarray) -> list[np.ndarray]:
    """The places (at least two) of each hash that stands there several times, the largest group first; 0 is none."""
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    begins = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(order) else np.zeros(0, np.int64)
    lengths = np.diff(np.r_[begins, len(order)])
    found = [
        order[begin : begin + length]
        for begin, length in zip(begins.tolist(), lengths.tolist(), strict=True)
        if length > 1 and ordered[begin]
    ]
    return sorted(found, key=lambda group: (-len(group), group[0]))
