"""``ldm index``: what shards hold, written beside them, and whether they are still what they were."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.markup import escape

from ldm.data.captions import as_fields
from ldm.data.index import FORMATS, SampleIndex, build_index, report
from ldm.data.shard_index import load_headers
from ldm.data.shards import find_shards


def index(
    *,
    shards: str | list[str],
    caption_field: str | dict[str, float] = "txt",
    filters: Sequence[str] = (),
    verify: bool = False,
    rebuild: bool = False,
) -> None:
    """Index shards, several at a time, and say what is in them.

    Training does the same at first use; this does it beforehand, where the shards can be written to. Each shard gets a
    ``.idx`` beside it, or in ``$LDM_CACHE`` (``~/.cache/ldm``) where its folder is read-only.

    Args:
        shards: a folder, a pattern or a list of them.
        caption_field: "txt", a json's field, or several, to count samples without any caption.
        filters: conditions like "min_side >= 256 and aesthetic > 5"; only counted here.
        verify: read every shard whole and compare its SHA-256 with the index.
        rebuild: index shards anew that have an index, or were changed since.

    Raises:
        FileNotFoundError: a shard is missing.
        StaleIndex: a shard is not what its index says.
        ValueError: a filter that is none, or no sample at all.
    """
    paths = find_shards(shards)
    console = Console(highlight=False, soft_wrap=True)
    with Console(stderr=True).status(f"indexing {len(paths):,} shards"):
        headers = load_headers(paths, verify=verify, rebuild=rebuild)
        found = build_index(paths, caption_fields=list(as_fields(caption_field)), filters=filters)
    size = sum(header.size for header in headers)
    console.print(f"{len(found):,} samples in {len(paths):,} shards, {size / 1e9:,.2f} GB")
    console.print(_pictures(found))
    if filters:
        console.print(f"left out by filters: {found.num_filtered:,}")
    if found.num_skipped:
        console.print(escape(report(found.skipped, num=found.num_skipped)))
    if verify:
        console.print("every shard is what it was when it was indexed (SHA-256)")


def _pictures(found: SampleIndex) -> str:
    """A line on formats and sizes."""
    kinds = np.bincount(found.column("format"), minlength=len(FORMATS))
    named = [f"{count:,} {name or 'unreadable'}" for name, count in zip(FORMATS, kinds, strict=True) if count]
    sides = np.minimum(found.column("width"), found.column("height"))
    sides = sides[sides > 0]
    if not len(sides):
        return f"pictures: {', '.join(named)}"
    low, middle, high = np.percentile(sides, [0, 50, 100]).astype(int)
    return f"pictures: {', '.join(named)}; shorter side {low} to {high}, half of them up to {middle}"
