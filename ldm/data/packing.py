"""Sources -> shards: who goes into which shard, and what becomes of one picture.

Both are pure, so packing gives the same shards with any number of processes and after any interruption.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ldm.data.decode import Colour, UnreadablePicture, is_plain, open_picture, to_rgb
from ldm.data.shards import check_samples_per_shard
from ldm.data.sources import UNREADABLE, Problem, Source
from ldm.data.transforms import shrink
from ldm.randomness import address

JPEG_QUALITY = 95


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How pictures are packed."""

    image_size: int | None  # the shorter side is shrunk to it; None keeps sizes
    background: Colour  # what transparent parts show
    max_pixels: int  # larger pictures are not decoded


@dataclass(frozen=True)
class Planned:
    """One shard's pictures."""

    split: str  # "train" or "val"
    shard: int
    sources: tuple[Source, ...]


@dataclass(frozen=True)
class Packed:
    """One sample, as ``ShardWriter.write`` takes it."""

    image: bytes
    extension: str
    caption: str
    meta: Mapping[str, Any]


def plan(
    sources: Sequence[Source], *, samples_per_shard: int, val_fraction: float, seed: int
) -> list[Planned]:
    """Deal pictures out to splits and shards.

    Each picture's split depends on nothing but its name and the seed, so pictures that come in later never move
    another one from training to validation. Within a split the order is shuffled: a shard is a fair sample.

    Raises:
        ValueError: ``val_fraction`` outside [0, 1), or more samples in a shard than keys have room for.
    """
    check_samples_per_shard(samples_per_shard)
    if not 0 <= val_fraction < 1:
        raise ValueError(f"val_fraction is {val_fraction}; it is a share of the pictures, from 0 to below 1")
    shuffled = sorted(sources, key=lambda source: (address(seed, "order", source.file), source.file))
    val = {source.file for source in sources if address(seed, "split", source.file) < val_fraction * 2**63}
    return [
        Planned(split, shard, tuple(members[start : start + samples_per_shard]))
        for split, members in (
            ("train", [source for source in shuffled if source.file not in val]),
            ("val", [source for source in shuffled if source.file in val]),
        )
        for shard, start in enumerate(range(0, len(members), samples_per_shard))
    ]


def pack_one(images: Path, source: Source, settings: Settings) -> Packed | Problem:
    """Read, check and, where needed, convert one picture; what cannot be read comes back as a problem.

    A picture that already is what it should be keeps its own bytes. Another is encoded once: JPEG stays JPEG (no
    chroma subsampling), everything else becomes PNG.
    """
    try:
        data = (images / source.file).read_bytes()
        picture = open_picture(data, max_pixels=settings.max_pixels)
        original, kind, plain = picture.size, picture.format, is_plain(picture)
        rgb = to_rgb(
            picture, background=settings.background
        )  # decoded in any case: a damaged file shows here
        small = rgb if settings.image_size is None else shrink(rgb, settings.image_size)
    except (OSError, UnreadablePicture) as error:
        return Problem(UNREADABLE, source.file, str(error))
    if not (plain and small is rgb and kind in ("PNG", "JPEG")):
        data = _encoded(small, jpeg=kind == "JPEG")
    return Packed(
        image=data,
        extension="jpg" if kind == "JPEG" else "png",
        caption=source.captions[0],
        meta={
            "captions": list(source.captions),
            "file": source.file,
            "width": small.width,
            "height": small.height,
            "original_width": original[0],
            "original_height": original[1],
        },
    )


def _encoded(picture: Image.Image, *, jpeg: bool) -> bytes:
    out = io.BytesIO()
    if jpeg:
        picture.save(out, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    else:
        picture.save(out, "PNG")
    return out.getvalue()
