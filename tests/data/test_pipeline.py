"""The order is exact: the same samples in every step, on any number of processes and workers, after any restart."""

from __future__ import annotations

import io
import itertools
import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.data.bad_samples import BadSamples, Ledger, TooManyBadSamples
from ldm.data.blend import order_of, sources_of
from ldm.data.order import GlobalBatches, Request, Shuffled
from ldm.data.pipeline import ShardDataset, endless, in_order
from ldm.data.sample import Preparation
from ldm.data.shards import ShardWriter
from ldm.data.streaming import streaming
from ldm.interfaces import Batch

NUM = 23


def png(i: int) -> bytes:
    """A picture that is wider than high and names its sample by its red value."""
    pixels = np.zeros((8, 12, 3), np.uint8)
    pixels[..., 0] = i
    pixels[..., 1] = np.arange(12) * 20
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("shards")
    with ShardWriter(folder, samples_per_shard=10) as writer:
        for i in range(NUM):
            writer.write(
                png(i),
                "png",
                f"sample {i}",
                {"captions": [f"sample {i}", f"{i} again", f"no. {i}"], "number": i},
            )
    return str(folder)


def batches_of(num: int = NUM, **options: int) -> GlobalBatches:
    return GlobalBatches(walk=Shuffled(counts=[num]), **options)


def assert_same(a: Batch, b: Batch) -> None:
    assert (a.keys, a.visits, a.captions) == (b.keys, b.visits, b.captions)
    assert (list(a.slots), a.num_slots) == (list(b.slots), b.num_slots)
    torch.testing.assert_close(a.images, b.images, rtol=0, atol=0)


# --- the samples -----------------------------------------------------------------------------------------------------


def test_picture_caption_and_key_belong_together(shards: str) -> None:
    data = ShardDataset(shards=shards, image_size=8)
    for i in (0, 9, 10, 22):
        item = data[Request(i, 0)]
        assert item.image.dtype == torch.uint8 and item.image.shape == (3, 8, 8)
        assert set(item.image[0].flatten().tolist()) == {i}
        assert item.caption == f"sample {i}"
        assert item.key == f"0000{i // 10}/0000{i // 10}000{i % 10}"


def test_choices_depend_on_sample_and_visit_and_on_nothing_else(shards: str) -> None:
    options = {"shards": shards, "image_size": 8, "caption_field": "captions", "flip": True, "crop": "random"}
    data, again = ShardDataset(**options), ShardDataset(**options)
    seen = {visit: data[Request(5, visit)] for visit in range(40)}
    for visit in reversed(range(40)):
        item = again[Request(5, visit)]
        assert item.caption == seen[visit].caption and torch.equal(item.image, seen[visit].image)
    assert {item.caption for item in seen.values()} == {"sample 5", "5 again", "no. 5"}
    rows = {tuple(item.image[1, 0].tolist()) for item in seen.values()}
    assert {row[0] < row[-1] for row in rows} == {True, False}  # mirrored and not
    assert len({min(row) for row in rows}) >= 4  # of five places to crop at
    assert [ShardDataset(**options, seed=1)[Request(5, visit)].caption for visit in range(40)] != [
        item.caption for item in seen.values()
    ]


def test_without_random_options_every_visit_is_the_same(shards: str) -> None:
    data = ShardDataset(shards=shards, image_size=8)
    assert torch.equal(data[Request(3, 0)].image, data[Request(3, 7)].image)
    assert data[Request(3, 0)].image[1, 0].tolist() == [
        40,
        60,
        80,
        100,
        120,
        140,
        160,
        180,
    ]  # the middle eight of twelve


def test_size_conditioning_says_how_the_picture_was_cut(shards: str) -> None:
    """The green value of a column says where in the picture it was: crop and mirroring are read off the picture."""
    data = ShardDataset(shards=shards, image_size=8, flip=True, crop="random")
    seen = set()
    for visit in range(40):
        item = data[Request(5, visit)]
        row = item.image[1, 0].tolist()  # 20 per pixel, in a picture that is 12 wide
        mirrored = row[0] > row[-1]
        left = (220 - row[0]) // 20 if mirrored else row[0] // 20
        assert item.sizes == (8, 12, 0, left, 8, 8)
        seen.add((left, mirrored))
    assert len(seen) >= 8


def test_the_original_size_may_come_from_before_packing(tmp_path: Path) -> None:
    with ShardWriter(tmp_path) as writer:
        writer.write(png(1), "png", "a", {"original_height": 800, "original_width": 1200})
        writer.write(png(2), "png", "b", {})
    named = ["original_height", "original_width"]
    data = ShardDataset(shards=str(tmp_path), image_size=8, original_size_from=named)
    assert [data[i].sizes[:2] for i in range(2)] == [(800, 1200), (8, 12)]


def test_a_bad_sample_is_replaced_whole_and_always_by_the_same(tmp_path: Path) -> None:
    with ShardWriter(tmp_path) as writer:
        for i in range(8):
            writer.write(b"<html>" if i in (1, 3) else png(i), "png", f"sample {i}", {})
    data = ShardDataset(shards=str(tmp_path), image_size=8)
    for i in range(8):
        (item, bad), (again, _) = data.read(Request(i, 0)), data.read(Request(i, 5))
        number = int(item.caption.removeprefix("sample "))
        assert set(item.image[0].flatten().tolist()) == {number} and item.key[-1] == str(number)
        assert torch.equal(item.image, again.image) and item.key == again.key
        assert [skip.key[-1] for skip in bad][:1] == ([str(i)] if i in (1, 3) else [])
        assert all(skip.shard == "00000.tar" and "no known picture format" in skip.reason for skip in bad)
        assert (number == i) == (i not in (1, 3))


def test_nothing_but_bad_pictures_is_an_error(tmp_path: Path) -> None:
    with ShardWriter(tmp_path) as writer:
        writer.write(b"<html>", "png", "404", {})
    with pytest.raises(
        TooManyBadSamples, match=r"100 bad samples in a row; the first is 00000\.tar, 000000000"
    ):
        ShardDataset(shards=str(tmp_path), image_size=8)[0]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_samples_are_listed_and_too_many_end_the_run(tmp_path: Path, num_workers: int) -> None:
    with ShardWriter(tmp_path / "shards") as writer:
        for i in range(40):
            writer.write(png(i) if i % 4 else b"", "png", f"sample {i}", {})
    data = ShardDataset(shards=str(tmp_path / "shards"), image_size=8)

    def run(policy: BadSamples, name: str) -> list[Batch]:
        ledger = Ledger(policy, file=tmp_path / name)
        order = GlobalBatches(walk=Shuffled(counts=[40]), global_batch=8)
        return list(
            itertools.islice(endless(data, lambda: order, num_workers=num_workers, ledger=ledger), 10)
        )

    assert len(run(BadSamples(stop_above=1.0), "all.jsonl")) == 10
    lines = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert sorted(line["key"] for line in lines) == [f"00000{i:04d}" for i in range(0, 40, 4)]
    assert {line["reason"] for line in lines} == {"the file is empty"}
    with pytest.raises(
        TooManyBadSamples, match=r"samples are bad, more than bad_samples\.stop_above=0\.01"
    ) as error:
        run(BadSamples(), "few.jsonl")
    assert error.value.exit_status == 65 and "Traceback" not in str(error.value)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_what_goes_wrong_in_a_worker_arrives_as_it_was_said(shards: str, num_workers: int) -> None:
    data = ShardDataset(shards=shards, image_size=8)
    data.index.shards = [Path("/nowhere/00000.tar")] * 3
    with pytest.raises(FileNotFoundError, match=r"No such file or directory: '/nowhere/00000\.tar'") as error:
        next(iter(endless(data, lambda: batches_of(global_batch=4), num_workers=num_workers)))
    assert "Traceback" not in str(error.value)


def test_sources_are_told_apart_and_keep_their_own_captions_and_filters(shards: str) -> None:
    sources = sources_of(
        [
            {"shards": shards, "weight": 1, "name": "plain"},
            {
                "shards": shards,
                "weight": 3,
                "caption_field": "captions",
                "filters": ["number >= 20"],
                "name": "late",
            },
        ]
    )
    data = ShardDataset(sources=sources, image_size=8)
    assert len(data) == NUM + 3
    assert data[0].key == "plain/00000/000000000" and data[NUM].key == "late/00002/000020000"
    order = order_of(data, num=len(data), global_batch=64)
    requests = [request for step in itertools.islice(order, 1024) for request in step]
    late = [request for request in requests if request.sample >= NUM]
    assert len(late) == 3 * len(requests) // 4  # one block, exactly
    assert [r.visit for r in late[:9]] == [0] * 3 + [1] * 3 + [2] * 3  # its own epochs, of three samples
    captions = {data[request].caption for request in late[:200]}
    assert captions == {text for i in (20, 21, 22) for text in (f"sample {i}", f"{i} again", f"no. {i}")}
    assert sorted(r.sample for r in [r for r in requests if r.sample < NUM][:NUM]) == list(range(NUM))
    with pytest.raises(ValueError, match="num_pictures=5 is for one source"):
        order_of(data, num=5, global_batch=4)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ([{"shard": "x"}], r"sources\[0\] has a 'shard'; a source has shards, weight"),
        ([{"weight": 1}], r"sources\[0\] has no shards"),
        ([{"shards": "x", "name": "a"}, {"shards": "y", "name": "a"}], "same name"),
        ([{"shards": "x", "name": "a/b"}], "no /"),
    ],
)
def test_sources_that_are_none_are_named(said: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sources_of(said)


def test_options_that_are_none_are_named(shards: str) -> None:
    with pytest.raises(ValueError, match=r"crop is 'centre'.*center, random"):
        ShardDataset(shards=shards, image_size=8, crop="centre")
    with pytest.raises(ValueError, match="image_size is 0"):
        ShardDataset(shards=shards, image_size=0)
    with pytest.raises(
        ValueError, match=r"no sound sample .* texts there are in captions, txt: set caption_field"
    ):
        ShardDataset(shards=shards, image_size=8, caption_field="text")[0]


# --- the loaders -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_change_nothing(shards: str, num_workers: int) -> None:
    data = ShardDataset(shards=shards, image_size=8, caption_field="captions", crop="random", flip=True)
    order = batches_of(global_batch=6, start=18)
    batches = list(itertools.islice(endless(data, lambda: order, num_workers=num_workers), 5))
    for batch, requests in zip(batches, order, strict=False):
        assert batch.sizes is not None and batch.sizes.dtype == torch.float32
        assert batch.images is not None and batch.images.dtype == torch.float32
        assert (len(batch), batch.slots, batch.num_slots) == (6, range(6), 6)
        for row, request in enumerate(requests):
            item = data[request]
            assert (batch.keys[row], batch.captions[row], batch.visits[row]) == (
                item.key,
                item.caption,
                item.visit,
            )
            torch.testing.assert_close(batch.images[row], item.image / 127.5 - 1)
            assert tuple(batch.sizes[row].tolist()) == item.sizes


def test_batches_that_are_kept_stay_as_they_were(shards: str) -> None:
    data = ShardDataset(shards=shards, image_size=8)
    loader = endless(data, lambda: batches_of(global_batch=5), num_workers=0)
    kept = list(itertools.islice(loader, 12))  # of more batches than memory is used again for
    for once, again in zip(kept, loader, strict=False):
        assert_same(once, again)
        del again


def test_the_order_is_asked_for_when_an_iteration_begins(shards: str) -> None:
    data = ShardDataset(shards=shards, image_size=8)
    seen = 0
    loader = endless(data, lambda: batches_of(global_batch=5, start=seen), num_workers=0)
    first = list(itertools.islice(loader, 3))
    seen = 10
    assert_same(next(iter(loader)), first[2])
    with pytest.raises(TypeError, match="no length"):
        len(loader)


def test_a_walk_in_order_is_complete_and_the_same_each_time(shards: str) -> None:
    data = ShardDataset(shards=shards, image_size=8, caption_field="captions")
    loader = in_order(data, batch_size=10)
    batches = list(loader)
    assert [len(batch) for batch in batches] == [10, 10, 3] and len(loader) == 3
    assert [key for batch in batches for key in batch.keys] == [data.index.key(i) for i in range(NUM)]
    assert [slot for batch in batches for slot in batch.slots] == list(range(NUM))
    assert {batch.num_slots for batch in batches} == {NUM}
    for a, b in zip(batches, loader, strict=True):
        assert_same(a, b)
    assert [batch.keys for batch in in_order(data, batch_size=4, start=8, stop=13)] == [
        [data.index.key(i) for i in piece] for piece in (range(8, 12), range(12, 13))
    ]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_stream_yields_the_same_kind_of_batch_without_end(shards: str, num_workers: int) -> None:
    prepared = Preparation(image_size=8, caption_field="captions")
    stream = streaming(
        shards, prepared, batch_size=8, rank=1, world_size=2, num_workers=num_workers, shuffle_buffer=7
    )
    batches = list(itertools.islice(stream, 20))
    for batch in batches:
        assert batch.images is not None and batch.images.shape == (4, 3, 8, 8)
        assert (batch.slots, batch.num_slots) == (range(4, 8), 8)
        for row in range(4):
            number = round(float((batch.images[row, 0, 0, 0] + 1) * 127.5))
            assert str(number) in batch.captions[row]
            assert batch.keys[row] == f"0000{number // 10}/0000{number // 10}000{number % 10}"
    assert len({key for batch in batches for key in batch.keys}) == NUM


def test_streams_refuse_addresses_that_run_programs_and_missing_shards(tmp_path: Path) -> None:
    prepared, ran = Preparation(image_size=8), tmp_path / "ran"
    for address in (f"pipe:touch {ran}", "gs://bucket/a.tar", [f"s3://bucket/$(touch {ran})/a.tar"]):
        with pytest.raises(ValueError, match=r"runs a program is refused.*data\.allow_commands=true"):
            streaming(address, prepared, batch_size=2)
    with pytest.raises(FileNotFoundError, match="no shard"):
        streaming(str(tmp_path / "a.tar"), prepared, batch_size=2)
    assert not ran.exists()


def test_a_program_runs_where_that_is_allowed(shards: str) -> None:
    prepared = Preparation(image_size=8)
    address = f"pipe:cat {shards}/00000.tar"
    batch = next(iter(streaming(address, prepared, batch_size=2, shuffle_buffer=2, allow_commands=True)))
    assert all(caption.startswith("sample ") for caption in batch.captions)


def test_shards_are_read_over_http(shards: str) -> None:
    handler = partial(SimpleHTTPRequestHandler, directory=shards)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/{{00000..00001}}.tar"
        stream = iter(streaming(address, Preparation(image_size=8), batch_size=4, shuffle_buffer=4))
        keys = {key.split("/")[0] for _ in range(8) for key in next(stream).keys}
        server.shutdown()
    assert keys == {"00000", "00001"}
