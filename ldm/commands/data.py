"""``ldm data``: what is in shards: counts, sizes, captions, duplicates, bad files, bucket fill, a contact sheet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ldm.commands.data_pictures import contact_sheet, draw_buckets
from ldm.data.buckets import Assignment, Buckets, Sizes, Square, token_counts
from ldm.data.captions import as_fields
from ldm.data.index import report as listed
from ldm.data.shards import find_shards, written_whole
from ldm.data.survey import Survey, groups, survey

LISTED = 50  # duplicates and bad files named in the report
REPORT, SHEET, BUCKETS = "report.json", "contact_sheet.png", "buckets.png"


def data(
    *,
    shards: str | list[str],
    out: str,
    image_size: int,
    buckets: Sizes | None = None,
    caption_field: str | dict[str, float] = "txt",
    decode: bool = True,
    num_words: int = 30,
    num_pictures: int = 40,
    seed: int = 0,
    num_workers: int = 2,
) -> None:
    """Say what shards hold, and write it down with two pictures: how buckets fill, and a contact sheet.

    Every sample is read once; nothing is trained on and nothing in the shards is changed.

    Args:
        shards: a folder, a pattern or a list of them.
        out: where report.json, contact_sheet.png and buckets.png go.
        image_size: side of the square that buckets have as many pixels as.
        buckets: in which sizes pictures would come out.
        caption_field: where captions come from.
        decode: decode every picture, to find damaged ones and those that look alike; false is several times faster.
        num_words: how many of the most frequent words are listed.
        num_pictures: in the contact sheet.
        seed: of the choice of pictures for it.
        num_workers: processes that look, shard by shard.

    Raises:
        FileNotFoundError: a shard is missing.
        ValueError: no sample at all.
    """
    paths = find_shards(shards)
    found = survey(paths, list(as_fields(caption_field)), decode=decode, num_workers=num_workers)
    sizes = (buckets or Square()).sized(image_size)
    height, width = (np.maximum(found.index.column(name), 1) for name in ("height", "width"))
    assignment = sizes.assign(height, width)
    said = described(found, assignment, num_words=num_words)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    with written_whole(folder / REPORT) as path:
        path.write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    draw_buckets(assignment, height, width, folder / BUCKETS)
    contact_sheet(found.index, list(as_fields(caption_field)), folder / SHEET, num=num_pictures, seed=seed)
    tell(said, found, assignment, sizes, Console(highlight=False))
    print(f"all of it: {folder / REPORT}, {folder / BUCKETS}, {folder / SHEET}")


def described(found: Survey, assignment: Assignment, *, num_words: int) -> dict[str, Any]:
    """A survey as plain data."""
    index = found.index
    height, width = index.column("height"), index.column("width")
    known = height > 0
    copies, alike = groups(found.pictures), groups(found.looks)
    same = {frozenset(group.tolist()) for group in copies}
    alike = [group for group in alike if frozenset(group.tolist()) not in same]
    captions = groups(found.captions)
    return {
        "shards": len(index.shards),
        "samples": len(index),
        "bytes": sum(header.size for header in index.headers),
        "formats": found.formats,
        "pictures": {
            "height": _spread(height[known]),
            "width": _spread(width[known]),
            "shorter side": _spread(np.minimum(height, width)[known]),
            "width / height": _spread(width[known] / height[known]),
        },
        "captions": {
            "samples without": int((found.captions_per_sample == 0).sum()),
            "per sample": _spread(found.captions_per_sample),
            "characters": _spread(found.characters),
            "words": _spread(found.words),
            "different words": len(found.vocabulary),
            "most frequent words": dict(found.vocabulary.most_common(num_words)),
            "that stand there more than once": sum(len(group) for group in captions),
            "fields with text": dict(found.fields.most_common()),
        },
        "duplicates": {
            "same bytes": _named(index, copies),
            "look alike": _named(index, alike) if found.decoded else None,
        },
        "not used": {"count": index.num_skipped, "first": [str(one) for one in index.skipped[:LISTED]]},
        "damaged": {"count": len(found.bad), "first": [str(one) for one in found.bad[:LISTED]]}
        if found.decoded
        else None,
        "buckets": {
            "held": {
                f"{height}x{width}": int(count)
                for (height, width), count in zip(assignment.sizes, assignment.counts(), strict=True)
            },
            "left out": assignment.left_out,
            "moved to the next nearest, for theirs held too few": assignment.moved,
        },
    }


def _spread(values: np.ndarray) -> dict[str, float] | None:
    """Least, quartiles and greatest."""
    if not len(values):
        return None
    named = zip(("least", "quarter", "half", "three quarters", "most"), (0, 25, 50, 75, 100), strict=True)
    return {name: round(float(np.percentile(values, share)), 3) for name, share in named}


def _named(index: Any, found: list[np.ndarray]) -> dict[str, Any]:
    return {
        "groups": len(found),
        "samples": int(sum(len(group) for group in found)),
        "largest": [[index.key(int(i)) for i in group[:8]] for group in found[:LISTED]],
    }


def tell(said: dict[str, Any], found: Survey, assignment: Assignment, sizes: Sizes, console: Console) -> None:
    """The report for people."""
    formats = ", ".join(f"{count:,} {name}" for name, count in said["formats"].items())
    console.print(
        f"{said['samples']:,} samples in {said['shards']:,} shards, {said['bytes'] / 1e6:,.1f} MB: {formats}"
    )
    table = Table("", *("least", "quarter", "half", "three quarters", "most"))
    for column in table.columns[1:]:
        column.justify = "right"
    captions = said["captions"]
    rows = said["pictures"] | {
        f"captions: {name}": captions[name] for name in ("per sample", "characters", "words")
    }
    for name, spread in rows.items():
        if spread is not None:
            table.add_row(name, *(f"{value:,.6g}" for value in spread.values()))
    console.print(table)
    words = ", ".join(f"{word} ({count:,})" for word, count in captions["most frequent words"].items())
    console.print(
        f"{captions['different words']:,} different words; the most frequent: {escape(words) or 'none'}"
    )
    if captions["samples without"]:
        there = ", ".join(f"{name} ({count:,})" for name, count in captions["fields with text"].items())
        console.print(
            f"without caption: {captions['samples without']:,}; texts there are in {escape(there) or 'no field'}"
        )
    for name, group in said["duplicates"].items():
        if group and group["groups"]:
            example = ", ".join(group["largest"][0][:3])
            console.print(
                f"{name}: {group['samples']:,} samples in {group['groups']:,} groups, as {escape(example)}"
            )
    if said["not used"]["count"]:
        console.print(escape(listed(found.index.skipped, num=found.index.num_skipped)))
    if found.bad:
        console.print(f"damaged pictures: {len(found.bad):,}, as {escape(str(found.bad[0]))}")
    _tell_buckets(assignment, sizes, console)


def _tell_buckets(assignment: Assignment, sizes: Sizes, console: Console) -> None:
    if len(assignment.sizes) == 1 and not assignment.left_out:
        height, width = assignment.sizes[0]
        console.print(
            f"all pictures come out in {height} x {width}; see how buckets would fill: buckets=aspect"
        )
        return
    table = Table("height", "width", "width / height", "tokens", "pictures", "share")
    tokens = token_counts(assignment.sizes, sizes.multiple_of) if isinstance(sizes, Buckets) else None
    counts = assignment.counts()
    for i, (height, width) in enumerate(assignment.sizes):
        table.add_row(
            *(str(height), str(width), f"{width / height:.2f}", "" if tokens is None else f"{tokens[i]:,}"),
            *(f"{counts[i]:,}", f"{counts[i] / max(1, len(assignment.bucket)):.1%}"),
        )
    for column in table.columns:
        column.justify = "right"
    console.print(table)
    for why, count in assignment.left_out.items():
        console.print(f"left out: {count:,} x {why}")
    if assignment.moved:
        console.print(f"moved to the next nearest size, for theirs held too few: {assignment.moved:,}")
