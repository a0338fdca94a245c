"""Pictures per second of our loader and of others, on the same pictures, side by side in one run.

    python benchmarks/data.py                              10,000 pictures of 256 x 256, and 1,000 of real sizes
    python benchmarks/data.py --parts speed --readers ldm "webdataset + PIL"
    python benchmarks/data.py --parts error growth bad     what needs no peer

The peers: webdataset is installed with ldm; ``pip install --no-deps litdata mosaicml-streaming`` and what they then ask
for brings the others (streaming pins an older numpy than ours, so it cannot be asked for together with it). A peer that
is missing is left out.

What counts are ratios: readers take turns, some batches each, and the median over the turns of a reader's rate is set
against that of webdataset + PIL. In one process rates are per second of CPU time, which others on the machine disturb
least; with workers they are per second of the clock. Everyone gets the pictures from the page cache.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data_growth import bad, cached, growth, indexing, memory, order_of_many
from data_peers import BATCH, READERS, SIDE, convert
from PIL import Image
from rich.console import Console
from rich.table import Table

BASE = "webdataset + PIL"
PHOTOGRAPHS = (
    "astronaut",
    "chelsea",
    "coffee",
    "rocket",
    "hubble_deep_field",
    "immunohistochemistry",
    "retina",
)
SOURCES = (256, 320, 384, 512, 768)
MARGINS = (1.0, 1.5, 2.0)
PARTS = ("speed", "error", "growth", "bad", "memory", "cached")


def main() -> None:
    """Measure the parts asked for, print tables and write everything as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--readers", nargs="+", choices=READERS, default=list(READERS))
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 2])
    parser.add_argument(
        "--num", type=int, default=10_000, help="pictures of 256 x 256; a tenth of real sizes"
    )
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--batches", type=int, default=10, help="per turn")
    parser.add_argument("--shards", nargs="+", type=int, default=[10, 100, 1_000, 10_000], help="for growth")
    parser.add_argument("--folder", type=Path, default=Path("data/benchmark"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/data.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {"torch": torch.__version__, "num": options.num}
    if "error" in options.parts:
        make(options.folder / "real" / "shards", "real", options.num // 10)
        title = "grey levels between our result and PIL's bicubic resize of all pixels"
        report["error"] = show(title, errors(options.folder / "real" / "shards"))
    if "speed" in options.parts:
        for kind, num in (("256", options.num), ("real", options.num // 10)):
            folder = options.folder / kind
            make(folder / "shards", kind, num)
            convert(folder)
            for workers in options.workers:
                title = f"pictures per second, {kind} -> {SIDE}, batches of {BATCH}, {workers} workers"
                rows = speeds(folder, workers, options)
                report[f"speed {kind} {workers}"] = show(title, rows)
    if "bad" in options.parts:
        make(options.folder / "256" / "shards", "256", options.num)
        report["bad"] = show("what 1 % bad samples cost", [bad(options.folder, options.turns)])
    if "growth" in options.parts:
        report["index"] = show("an index, of 10,000 samples like img2dataset's", indexing(options.folder))
        report["growth"] = show("growth with the number of shards", growth(options.folder, options.shards))
        report["order"] = show("the order of 100 million samples", order_of_many())
    if "memory" in options.parts:
        make(options.folder / "256" / "shards", "256", options.num)
        report["memory"] = show("memory of the process while reading on", memory(options.folder))
    if "cached" in options.parts:
        report["cached"] = show("cached latents (4 x 16 x 16) and captions", cached(options.folder))
    options.out.write_text(json.dumps(report, indent=1) + "\n")


def show(title: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Print a table; returns its rows."""
    table = Table(title=title)
    for name in rows[0]:
        table.add_column(name, justify="left" if name == "reader" else "right")
    for row in rows:
        table.add_row(
            *(
                f"{x:,.2f}" if isinstance(x, float) else f"{x:,}" if isinstance(x, int) else x
                for x in row.values()
            )
        )
    Console().print(table)
    return rows


def photographs() -> list[Image.Image]:
    """Those that come with scikit-image, so that nobody has to download any."""
    from skimage import data

    return [Image.fromarray(getattr(data, name)()).convert("RGB") for name in PHOTOGRAPHS]


def make(folder: Path, kind: str, num: int) -> None:
    """Shards of JPEGs, quality 90: squares of 256, or crops of all sizes from 300 to 1,400; kept for the next run."""
    from ldm.data.shards import ShardWriter

    made = folder.with_name("made.txt")
    if made.exists() and made.read_text() == f"{num} of {kind}":
        return
    made.unlink(missing_ok=True)
    for old in (folder, folder.with_name("mds"), folder.with_name("litdata")):
        shutil.rmtree(old, ignore_errors=True)
    photos, random = photographs(), np.random.default_rng(0)
    with ShardWriter(folder, samples_per_shard=1_000 if kind == "256" else 100) as writer:
        for i in range(num):
            photo, out = photos[i % len(photos)], io.BytesIO()
            shorter = min(photo.size)
            width, height = random.integers(2 * shorter // 3, shorter + 1, 2).tolist()
            if kind == "256":
                height = width
            left, top = (
                int(random.integers(0, a - b + 1)) for a, b in zip(photo.size, (width, height), strict=True)
            )
            size = (256, 256) if kind == "256" else (width, height)
            box = (left, top, left + width, top + height)
            photo.resize(size, Image.Resampling.LANCZOS, box=box).save(out, "JPEG", quality=90)
            writer.write(out.getvalue(), "jpg", f"photograph {i % len(photos)}, part {i}", {"number": i})
    made.write_text(f"{num} of {kind}")


def errors(real: Path) -> list[dict[str, Any]]:
    """How far decoding at a fraction is from resampling all pixels, by the size that photographs have; and on average.

    Args:
        real: shards of pictures of all sizes, of which every tenth is looked at.
    """
    from ldm.data.index import build_index
    from ldm.data.shards import find_shards

    pictures: dict[str, list[bytes]] = {}
    for photo in photographs():
        side = min(photo.size)
        for source in SOURCES:
            out = io.BytesIO()
            square = photo.crop((0, 0, side, side)).resize((source, source), Image.Resampling.LANCZOS)
            square.save(out, "JPEG", quality=90)
            pictures.setdefault(f"{source} -> {SIDE}", []).append(out.getvalue())
    index = build_index(find_shards(real))
    pictures[f"300 to 1,400 -> {SIDE}"] = [index.read(i, "picture") or b"" for i in range(0, len(index), 10)]
    rows = []
    for name, encoded in pictures.items():
        row: dict[str, Any] = {"reader": name}
        for margin in MARGINS:
            found = [error(data, margin) for data in encoded]
            row |= {f"margin {margin:g}": statistics.mean(found), f"the worst, {margin:g}": max(found)}
        rows.append(row)
    return rows


def error(data: bytes, margin: float) -> float:
    """Of one picture: the middle square as we show it, against PIL's bicubic of the same pixels of the whole."""
    from ldm.data.decode import decode
    from ldm.data.pixels import decode_pixels
    from ldm.data.transforms import fit

    pixels = decode_pixels(data, shown=(SIDE, SIDE), margin=margin)
    shown, _ = fit(pixels, (SIDE, SIDE))
    side, n = min(pixels.height, pixels.width), pixels.fraction
    left, top = (round((length - side) / 2 / n) * n for length in (pixels.width, pixels.height))
    square = decode(data).crop((left, top, left + side, top + side))
    off = shown.astype(int) - np.asarray(square.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    return float(np.abs(off).mean())


def speeds(folder: Path, workers: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rates of all readers in turns; with workers, one reader after the other, several times over."""
    rates: dict[str, list[float]] = {}
    if workers == 0:
        running = {}
        for name in options.readers:
            try:
                running[name] = READERS[name](folder, 0)
                next(running[name])
            except ImportError as error:
                print(f"{name} is left out: {error}")
                running.pop(name, None)
        for _ in range(options.turns):
            for name, batches in running.items():
                begun = time.process_time()
                for images in itertools.islice(batches, options.batches):
                    assert images.shape == (BATCH, 3, SIDE, SIDE) and images.dtype == torch.float32
                rates.setdefault(name, []).append(options.batches * BATCH / (time.process_time() - begun))
    else:
        for _ in range(max(2, options.turns // 2)):
            for name in options.readers:
                try:
                    batches = READERS[name](folder, workers)
                    for _ in range(2 * workers + 2):  # what was prefetched while workers began
                        next(batches)
                except ImportError:
                    continue
                begun = time.perf_counter()
                for _ in itertools.islice(batches, 4 * options.batches):
                    pass
                rates.setdefault(name, []).append(4 * options.batches * BATCH / (time.perf_counter() - begun))
                batches.close()
    middle = {name: statistics.median(values) for name, values in rates.items()}
    return [
        {
            "reader": name,
            "pictures/s": round(rate),
            f"x {BASE}": rate / middle[BASE] if BASE in middle else float("nan"),
        }
        for name, rate in middle.items()
    ]


if __name__ == "__main__":
    main()
