"""``ldm shapes``: shards of captioned pictures of coloured shapes, the small world to learn and test on."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ldm.data.shapes import KIND_SHARES, KINDS, sample_scene
from ldm.data.shapes_captions import captions
from ldm.data.shapes_render import render
from ldm.data.shards import ShardWriter, shard_path, written_whole
from ldm.randomness import address

SCENES = 2  # raised when the same seed and key come to mean another picture
RECIPE = "shapes.json"  # beside train/ and val/: what the shards were made with


Shares = tuple[float, float, float]  # of each of KINDS


@dataclass(frozen=True)
class _Job:
    """One shard to write."""

    folder: Path  # <out>/<split>
    shard: int
    first: int  # number of its first sample in the split
    num: int
    samples_per_shard: int
    seed: int
    shares: Shares


def shapes(
    *,
    out: str,
    num_train: int,
    num_val: int,
    seed: int,
    train_shares: dict[str, float] | None = None,
    samples_per_shard: int = 1000,
    num_workers: int | None = None,
) -> None:
    """Write shards of captioned pictures of coloured shapes: ``<out>/train/*.tar`` and ``<out>/val/*.tar``.

    Sample i of a split is the same picture whatever the other arguments are (but seed). Shards that are
    already there are kept: an interrupted call can be given again, and a second call has nothing left to do.

    Args:
        out: folder to write to.
        num_train: training pictures.
        num_val: validation pictures.
        seed: of all scenes.
        train_shares: of the kinds of scene, single, count and relation, in training; they sum to 1. Null for 0.2,
            0.4 and 0.4, which validation pictures and the prompts of ``ldm evaluate`` always have.
        samples_per_shard: at most 10,000.
        num_workers: processes; null for one per CPU core that this process may use.

    Raises:
        ValueError: a negative number, or shares that are none.
        FileExistsError: the folder holds shards that were made with other arguments.
    """
    for name, num in (("num_train", num_train), ("num_val", num_val)):
        if num < 0:
            raise ValueError(f"{name} is {num}; give 0 or more")
    shares = {"train": _shares(train_shares) if train_shares else KIND_SHARES, "val": KIND_SHARES}
    recipe = {
        "scenes": SCENES,
        "seed": seed,
        "num_train": num_train,
        "num_val": num_val,
        "train_shares": list(shares["train"]),
        "samples_per_shard": samples_per_shard,
    }
    _claim(Path(out), recipe)
    jobs = [
        job
        for split, num in (("train", num_train), ("val", num_val))
        for job in _jobs(Path(out) / split, num, samples_per_shard, seed, shares[split])
    ]
    missing = [job for job in jobs if not shard_path(job.folder, job.shard).exists()]
    console = Console(stderr=True)
    bar = (TextColumn("pictures"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*bar, console=console) as progress, ProcessPoolExecutor(num_workers or _cores()) as pool:
        task = progress.add_task("", total=sum(job.num for job in jobs))
        progress.advance(task, sum(job.num for job in jobs) - sum(job.num for job in missing))
        for done in as_completed([pool.submit(_write_shard, job) for job in missing]):
            progress.advance(task, done.result())
    print(f"{num_train} training and {num_val} validation pictures in {out}")


def _shares(given: dict[str, float]) -> Shares:
    if set(given) != set(KINDS) or min(given.values()) < 0 or abs(sum(given.values()) - 1) > 1e-6:
        raise ValueError(f"train_shares={given} must give {', '.join(KINDS)} a share each, that sum to 1")
    single, count, relation = (given[kind] / sum(given.values()) for kind in KINDS)
    return single, count, relation


def _claim(out: Path, recipe: dict[str, Any]) -> None:
    """Note what the folder's shards are made with; refuse to mix them with others."""
    path = out / RECIPE
    if path.exists():
        before = json.loads(path.read_text())
        if before != recipe:
            differ = ", ".join(
                f"{k}={before.get(k)}, not {v}" for k, v in recipe.items() if before.get(k) != v
            )
            raise FileExistsError(
                f"{out} holds pictures made with {differ}; choose another out=<folder> or remove {out}"
            )
        return
    for split in ("train", "val"):
        if any((out / split).glob("*.tar")):
            raise FileExistsError(
                f"{out / split} holds shards, but no {path} says what they are; choose another out=<folder>"
            )
    with written_whole(path) as partial:
        partial.write_text(json.dumps(recipe, indent=1) + "\n")


def _jobs(folder: Path, num: int, samples_per_shard: int, seed: int, shares: Shares) -> Iterator[_Job]:
    for shard, first in enumerate(range(0, num, samples_per_shard)):
        yield _Job(folder, shard, first, min(samples_per_shard, num - first), samples_per_shard, seed, shares)


def _write_shard(job: _Job) -> int:
    """Write one shard; returns how many samples it holds."""
    with ShardWriter(job.folder, samples_per_shard=job.samples_per_shard, first_shard=job.shard) as writer:
        for i in range(job.first, job.first + job.num):
            writer.write(*sample(job.seed, f"{job.folder.name}/{i:08d}", job.shares))
    return job.num


def sample(seed: int, key: str, shares: Shares = KIND_SHARES) -> tuple[bytes, str, str, dict[str, object]]:
    """One sample as it stands in a shard: PNG, "png", one caption, and the scene with all its captions."""
    scene = sample_scene(seed, key, held_out=False, shares=shares)
    phrasings = captions(scene)
    choice = np.random.default_rng(address(seed, "caption", key)).integers(len(phrasings))
    png = io.BytesIO()
    Image.fromarray(render(scene)).save(png, format="PNG")
    meta = {"kind": scene.kind, "scene": asdict(scene), "captions": phrasings, "seed": seed, "name": key}
    return png.getvalue(), "png", phrasings[choice], meta


def _cores() -> int:
    """How many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
