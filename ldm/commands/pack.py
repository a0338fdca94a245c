"""``ldm pack``: a folder of pictures and their captions -> shards to train on."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ldm.data.decode import colour
from ldm.data.packing import Packed, Planned, Settings, pack_one, plan
from ldm.data.shards import ShardWriter, shard_path, written_whole
from ldm.data.sources import Problem, Source, Sources, find_sources

RECIPE = "pack.json"  # what the folder's shards are made of and how
REPORT = "report.json"  # what was packed and what was not

_Work = Callable[[Source], Packed | Problem]
_Results = Iterator[tuple[Planned, Iterator[Packed | Problem]]]


def pack(
    *,
    images: str,
    captions: str | None,
    out: str,
    image_size: int | None = None,
    val_fraction: float = 0.0,
    background: str = "white",
    samples_per_shard: int = 1000,
    skip_duplicates: bool = True,
    file_column: str | None = None,
    caption_column: str | None = None,
    max_pixels: int = 80_000_000,
    seed: int = 0,
    num_workers: int | None = None,
) -> None:
    """Write ``<out>/train/*.tar``, ``<out>/val/*.tar`` and ``<out>/report.json``.

    Shards that are already there are kept: an interrupted call can be given again and ends in the same shards.

    Args:
        images: folder of pictures, with all its subfolders.
        captions: .csv, .tsv, .jsonl or .parquet table; null for a .txt beside each picture.
        out: folder to write to.
        image_size: shrink the shorter side to it, once and antialiased; null keeps sizes. Never enlarges.
        val_fraction: share of the pictures that is kept for validation; a picture's name decides.
        background: what transparent parts show, a name or #rrggbb.
        samples_per_shard: at most 10,000.
        skip_duplicates: pack pictures that agree in every byte once, with the captions of all.
        file_column: the table's column that names the picture; null finds the usual names.
        caption_column: the table's column of captions; null finds the usual names.
        max_pixels: pictures with more are skipped without decoding them.
        seed: of the order and the split.
        num_workers: processes; null for one per CPU core that this process may use.

    Raises:
        FileNotFoundError: no such folder or table.
        FileExistsError: the folder holds shards of other pictures or settings.
        ValueError: an option that is none, or nothing to pack.
    """
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size is {image_size}; it is a side in pixels, 1 or more, or null")
    settings = Settings(image_size=image_size, background=colour(background), max_pixels=max_pixels)
    console = Console(stderr=True, soft_wrap=True)
    with console.status("looking at the folder and its captions"):
        sources = find_sources(
            Path(images),
            None if captions is None else Path(captions),
            file_column=file_column,
            caption_column=caption_column,
            skip_duplicates=skip_duplicates,
        )
    planned = plan(
        sources.pictures, samples_per_shard=samples_per_shard, val_fraction=val_fraction, seed=seed
    )
    recipe = {
        **asdict(settings),
        "samples_per_shard": samples_per_shard,
        "val_fraction": val_fraction,
        "seed": seed,
    }
    _claim(Path(out), recipe | {"pictures": _fingerprint(Path(images), sources)})
    work = partial(pack_one, Path(images), settings=settings)
    try:
        _write(planned, work, Path(out), num_workers or _cores(), console)
    except KeyboardInterrupt:
        console.print(
            f"interrupted; what is done stands in {escape(out)}: give the same command again to go on"
        )
        raise SystemExit(130) from None
    report = _report(Path(out), planned, sources.problems)
    with written_whole(Path(out) / REPORT) as path:
        path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    _print(report, Path(out))
    if not sum(report["packed"].values()):
        raise ValueError(f"nothing could be packed from '{images}'; {Path(out) / REPORT} says why")


def _write(planned: Sequence[Planned], work: _Work, out: Path, num_workers: int, console: Console) -> None:
    """Pack what is missing. Pictures are decoded on all cores; this process writes them down in their order."""
    total = sum(len(shard.sources) for shard in planned)
    missing = [shard for shard in planned if not _stats_path(out, shard).exists()]
    done = total - sum(len(shard.sources) for shard in missing)
    bar = (TextColumn("pictures"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with _results(missing, work, num_workers) as results, Progress(*bar, console=console) as progress:
        task = progress.add_task("", total=total, completed=done)
        for shard, packed in results:
            problems: list[Problem] = []
            with ShardWriter(
                out / shard.split, samples_per_shard=max(1, len(shard.sources)), first_shard=shard.shard
            ) as writer:
                for one in packed:
                    if isinstance(one, Problem):
                        problems.append(one)
                    else:
                        writer.write(one.image, one.extension, one.caption, one.meta)
                    progress.advance(task)
            # Written after the shard: where it stands, the shard is done.
            stats = {
                "packed": len(shard.sources) - len(problems),
                "problems": [asdict(one) for one in problems],
            }
            with written_whole(_stats_path(out, shard)) as path:
                path.write_text(json.dumps(stats, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def _results(shards: Sequence[Planned], work: _Work, num_workers: int) -> Iterator[_Results]:
    """Each shard's results in order; while one shard is written, the next is worked on already."""
    if num_workers == 1 or not shards:
        yield ((shard, map(work, shard.sources)) for shard in shards)
        return
    pool = ProcessPoolExecutor(num_workers, initializer=_leave_interrupts_to_parent)

    def begin(shard: Planned) -> Iterator[Packed | Problem]:
        return pool.map(work, shard.sources, chunksize=8)

    def walk(first: Iterator[Packed | Problem]) -> _Results:
        under_way = first
        for shard, following in zip_longest(shards, shards[1:]):
            packed, under_way = under_way, begin(following) if following else iter(())
            yield shard, packed

    try:
        yield walk(
            begin(shards[0])
        )  # begun here: processes are made before the progress bar makes its thread
    except BrokenProcessPool:
        raise RuntimeError(
            "a packing process was killed, perhaps for lack of memory; give the same command again, with a smaller "
            "num_workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _leave_interrupts_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _claim(out: Path, recipe: dict[str, Any]) -> None:
    """Note what the folder's shards are made of and how; refuse to mix them with others."""
    path = out / RECIPE
    recipe = json.loads(json.dumps(recipe))  # as it will be read: lists for tuples
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        differ = [name for name in recipe if before.get(name) != recipe[name]]
        if differ:
            listed = ", ".join(f"{name} ({before.get(name)}, now {recipe[name]})" for name in differ)
            raise FileExistsError(
                f"{out} holds a packing with another {listed}; choose another out or remove {out}"
            )
        return
    for split in ("train", "val"):
        if any((out / split).glob("*.tar")):
            raise FileExistsError(
                f"{out / split} holds shards that are not of this packing; choose another out"
            )
    with written_whole(path) as partial:
        partial.write_text(json.dumps(recipe, indent=1) + "\n", encoding="utf-8")


def _fingerprint(images: Path, sources: Sources) -> str:
    """A hash over the names, sizes and captions of all pictures."""
    listed = [(one.file, (images / one.file).stat().st_size, one.captions) for one in sources.pictures]
    return hashlib.blake2b(repr(listed).encode(errors="replace"), digest_size=16).hexdigest()


def _stats_path(out: Path, shard: Planned) -> Path:
    path = shard_path(out / shard.split, shard.shard)
    return path.with_name(f"{path.stem}_stats.json")


def _report(out: Path, planned: Sequence[Planned], problems: Sequence[Problem]) -> dict[str, Any]:
    """What was packed, what was not and why, over this call and the ones that it continued."""
    packed = {"train": 0, "val": 0}
    listed = [asdict(problem) for problem in problems]
    for shard in planned:
        stats = json.loads(_stats_path(out, shard).read_text(encoding="utf-8"))
        packed[shard.split] += stats["packed"]
        listed += stats["problems"]
    listed.sort(key=lambda problem: (problem["kind"], problem["file"]))
    counts = Counter(problem["kind"] for problem in listed)
    return {"packed": packed, "not packed": dict(sorted(counts.items())), "problems": listed}


def _print(report: dict[str, Any], out: Path) -> None:
    console = Console(highlight=False, soft_wrap=True)
    train, val = report["packed"]["train"], report["packed"]["val"]
    console.print(f"packed {train:,} pictures for training and {val:,} for validation in {escape(str(out))}")
    for kind, count in report["not packed"].items():
        console.print(f"not packed: {count:,} x {kind}")
        of_kind = [problem for problem in report["problems"] if problem["kind"] == kind]
        for problem in of_kind[:3]:
            console.print(f"  {escape(problem['file'])}: {escape(problem['reason'])}")
    if report["problems"]:
        console.print(f"all of them with reasons: {escape(str(out / REPORT))}")


def _cores() -> int:
    """How many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
