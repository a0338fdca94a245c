"""What our own loader costs as data grow, age and go bad."""

from __future__ import annotations

import io
import itertools
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ldm.interfaces import Conditioning

START = """
import sys, time
from pathlib import Path
import torch
from ldm.data.blend import order_of
from ldm.data.pipeline import ShardDataset, endless
def anonymous():
    return int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1])
before, begun = anonymous(), time.perf_counter()
data = ShardDataset(shards=sys.argv[1], image_size=32)
opened = time.perf_counter()
order = order_of(data, num=len(data), global_batch=64)
next(iter(endless(data, lambda: order, num_workers=0)))
print(len(data), opened - begun, time.perf_counter() - begun, anonymous() - before)
"""


def indexing(folder: Path) -> list[dict[str, Any]]:
    """One shard of a thousand pictures of 256 x 256 with the json that img2dataset writes, indexed several times."""
    from ldm.data.scan import tar_hash
    from ldm.data.shard_index import write_index
    from ldm.data.shards import ShardWriter, find_shards

    out = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((256, 256), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
    with ShardWriter(folder / "like_img2dataset", samples_per_shard=1_000) as writer:
        for i in range(1_000):
            fields = {"caption": f"caption {i}", "url": f"https://example.org/{i}.jpg", "key": f"{i:09d}"}
            numbers = {
                "width": 256,
                "height": 256,
                "original_width": 640 + i,
                "original_height": 480,
                "aesthetic": i / 7,
            }
            meta = {**fields, **numbers, "status": "success", "error_message": None, "exif": "{}"}
            writer.write(out.getvalue(), "jpg", fields["caption"], meta)
    (shard,) = find_shards(folder / "like_img2dataset")
    seconds: dict[str, list[float]] = {}
    for _ in range(9):
        for name, work in (("all", write_index), ("SHA-256", tar_hash)):
            begun = time.process_time()
            work(shard)
            seconds.setdefault(name, []).append(10 * (time.process_time() - begun))
    size = shard.with_suffix(".idx").stat().st_size
    return [
        {
            "kB a sample": shard.stat().st_size / 1e6,
            "s of CPU time": statistics.median(seconds["all"]),
            "the least": min(seconds["all"]),
            "of it SHA-256": min(seconds["SHA-256"]),
            "bytes a sample": size / 1_000,
        }
    ]


def growth(folder: Path, nums: list[int]) -> list[dict[str, Any]]:
    """Shards of ten tiny samples: what an index costs by the shard, and a start."""
    from ldm.data.shard_index import write_index
    from ldm.data.shards import ShardWriter, find_shards

    out = io.BytesIO()
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(out, "JPEG")
    rows = []
    for num in nums:
        where = folder / f"growth{num}"
        with ShardWriter(where, samples_per_shard=10) as writer:
            for i in range(10 * num):
                writer.write(out.getvalue(), "jpg", f"caption {i}", {"number": i})
        shards = find_shards(where)
        begun = time.process_time()
        for shard in shards[:100]:
            write_index(shard)
        each = (time.process_time() - begun) / min(num, 100)
        runs = []
        for _ in range(4):  # the first also makes what is missing
            said = subprocess.run(
                [sys.executable, "-c", START, str(where)], capture_output=True, text=True, check=True
            )
            runs.append([float(x) for x in said.stdout.split()])
        samples, opened, first, memory = (statistics.median(column) for column in zip(*runs[1:], strict=True))
        rows.append(
            {
                "shards": num,
                "samples": int(samples),
                "index a shard, ms": 1e3 * each,
                "open, s": opened,
                "first batch, s": first,
                "memory, MB": memory / 1e3,
            }
        )
    return rows


def order_of_many() -> list[dict[str, Any]]:
    """The order alone of 100 million samples in 10,000 shards: no file is read for it."""
    from ldm.data.order import GlobalBatches, Shuffled

    rows = []
    for start in (0, 10**9 + 7):
        begun = time.process_time()
        walk = Shuffled(counts=[10_000] * 10_000)
        batches = iter(GlobalBatches(walk=walk, global_batch=256, start=start))
        next(batches)
        first = time.process_time() - begun
        begun = time.process_time()
        for _ in itertools.islice(batches, 400):
            pass
        each = (time.process_time() - begun) / (400 * 256)
        rows.append(
            {"samples": walk.num_samples, "begins at": start, "first batch, s": first, "then, us": 1e6 * each}
        )
    return rows


def bad(folder: Path, turns: int) -> dict[str, Any]:
    """Reading shards of which every hundredth picture is cut off in the middle, against the sound ones."""
    from ldm.data.bad_samples import BadSamples, Ledger
    from ldm.data.blend import order_of
    from ldm.data.index import build_index
    from ldm.data.pipeline import ShardDataset, endless
    from ldm.data.shards import ShardWriter, find_shards

    index = build_index(find_shards(folder / "256" / "shards"))
    with ShardWriter(folder / "bad", samples_per_shard=1_000) as writer:
        for i in range(len(index)):
            picture = index.read(i, "picture")
            writer.write(picture[: len(picture) // 2] if i % 100 == 7 else picture, "jpg", f"{i}", {})
    readers = {}
    for name in ("256/shards", "bad"):
        data = ShardDataset(shards=str(folder / name), image_size=128)
        order = order_of(data, num=len(data), global_batch=64)
        ledger = Ledger(BadSamples(stop_above=1.0))
        readers[name] = iter(endless(data, lambda order=order: order, num_workers=0, ledger=ledger))
    seconds: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(3 * turns):
        for name, batches in readers.items():
            begun = time.process_time()
            for _ in itertools.islice(batches, 8):
                pass
            seconds[name].append(time.process_time() - begun)
    sound, damaged = (statistics.median(values) for values in seconds.values())
    return {"reader": "ldm", "sound, s": sound, "1 % bad, s": damaged, "cost, %": 100 * (damaged / sound - 1)}


def memory(folder: Path) -> list[dict[str, Any]]:
    """The process's own memory (RssAnon), every 20,000 of 100,000 samples."""
    from ldm.data.blend import order_of
    from ldm.data.pipeline import ShardDataset, endless

    data = ShardDataset(shards=str(folder / "256" / "shards"), image_size=128)
    order = order_of(data, num=len(data), global_batch=64)
    rows = []
    for step, _ in enumerate(endless(data, lambda: order, num_workers=0)):
        if step * 64 // 20_000 >= len(rows):
            with open("/proc/self/status") as status:
                anonymous = next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))
            rows.append({"samples": step * 64, "RssAnon, MB": anonymous / 1e3})
        if step * 64 >= 100_000:
            return rows
    raise AssertionError("training data never end")


class _Means(torch.nn.Module):
    """A codec that costs nothing: what is measured is the cache."""

    channels, downsample, content_hash = 4, 2, "benchmark"

    def moments(self, images: torch.Tensor) -> torch.Tensor:
        small = torch.nn.functional.avg_pool2d(images, 2)
        return torch.cat([small, small[:, :1], small, small[:, :1]], dim=1)


class _Words:
    """A text encoder that costs nothing, of the usual size."""

    width, pooled_width, length, content_hash = 256, 256, 77, "benchmark"

    def __init__(self) -> None:
        self.contract = {"encoder": "benchmark"}

    def __call__(self, captions: Sequence[str]) -> Conditioning:
        tokens = torch.arange(77 * 256).remainder(101).view(1, 77, 256).expand(len(captions), -1, -1) / 101
        return Conditioning(
            tokens=tokens, mask=torch.ones(len(captions), 77, dtype=torch.bool), pooled=tokens[:, 0]
        )


def cached(folder: Path) -> list[dict[str, Any]]:
    """Latents in the exact order, with captions and keys, without and with text; and bare rows of mapped arrays."""
    from ldm.data.blend import order_of
    from ldm.data.latent_dataset import LatentDataset
    from ldm.data.latents import contract_for, encode
    from ldm.data.pipeline import ShardDataset
    from ldm.data.text_cache import TextCache, encode_text

    data = ShardDataset(shards=str(folder / "256" / "shards"), image_size=32)
    latents = contract_for("benchmark", data).folder(folder / "latents")
    encode(_Means(), data, latents, batch_size=64)
    encode_text(_Words(), data, folder / "text", batch_size=64)
    text = TextCache(folder / "text", data, _Words())
    order = order_of(data, num=len(data), global_batch=256)
    rows, tokens = (
        np.lib.format.open_memmap(folder / name, mode="w+", dtype=np.float16, shape=(len(data), *shape))
        for name, shape in (("rows.npy", (8, 16, 16)), ("tokens.npy", (77, 256)))
    )
    rows[:], tokens[:] = 1, 1

    def bare(*arrays: np.ndarray) -> Iterator[Any]:
        for requests in order:
            numbers = [request.sample for request in requests]
            yield [torch.from_numpy(array[numbers]) for array in arrays]

    readers = {
        "ldm": LatentDataset(latents, data, codec_hash="benchmark").endless(order),
        "one array, mapped": bare(rows),
        "ldm with text": LatentDataset(latents, data, codec_hash="benchmark", text=text).endless(order),
        "two arrays, mapped": bare(rows, tokens),
    }
    seconds: dict[str, list[float]] = {name: [] for name in readers}
    for turn in range(16):
        for name, batches in readers.items():
            begun = time.process_time()
            for _ in itertools.islice(batches, 8):
                pass
            if turn:  # the first also maps
                seconds[name].append(time.process_time() - begun)
    return [
        {"reader": name, "samples/s": round(8 * 256 / statistics.median(values))}
        for name, values in seconds.items()
    ]
