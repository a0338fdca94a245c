"""Latents are what the codec says, made once, whole or not at all, and never mixed up with another codec's."""

from __future__ import annotations

import io
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ldm.data import latents as module
from ldm.data.latents import LatentDataset, contract_for, encode, is_complete, latents_folder
from ldm.data.pipeline import GlobalBatches, ShardDataset, endless, in_order
from ldm.data.shards import ShardWriter


class Halves:
    """A codec of one line: moments are the pictures at half size, and twice that."""

    channels, downsample, content_hash = 3, 2, "ab" * 32

    def __init__(self, *, stop_after: int | None = None) -> None:
        self.left = stop_after
        self.num_encoded = 0

    def moments(self, images: Tensor) -> Tensor:
        if self.left is not None:
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
        self.num_encoded += len(images)
        small = torch.nn.functional.avg_pool2d(images, 2)
        return torch.cat([small, 2 * small], dim=1)

    def latents(self, moments: Tensor, *, noise: Tensor | None) -> Tensor:
        return moments[:, :3]

    def decode(self, latents: Tensor) -> Tensor:
        return latents


def write_shards(folder: Path, num: int = 23, *, broken: int | None = None) -> ShardDataset:
    random = np.random.default_rng(0)
    with ShardWriter(folder, samples_per_shard=10) as writer:
        for i in range(num):
            out = io.BytesIO()
            Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(out, "PNG")
            picture = b"broken" if i == broken else out.getvalue()
            writer.write(picture, "png", f"sample {i}", {"captions": [f"a{i}", f"b{i}"], "other": f"c{i}"})
    return ShardDataset(shards=str(folder), image_size=8, caption_field="captions")


@pytest.fixture
def data(tmp_path: Path) -> ShardDataset:
    return write_shards(tmp_path / "shards")


def test_latents_are_the_codecs_moments_in_the_order_of_the_shards(
    tmp_path: Path, data: ShardDataset
) -> None:
    codec = Halves()
    encode(codec, data, tmp_path / "out", batch_size=5)
    cached = LatentDataset(tmp_path / "out", codec_hash=codec.content_hash, caption_field="captions")
    assert len(cached) == 23
    for batch, pictures in zip(cached.in_order(batch_size=4), in_order(data, batch_size=4), strict=True):
        assert batch.images is None and batch.moments is not None and pictures.images is not None
        torch.testing.assert_close(batch.moments, codec.moments(pictures.images), rtol=1e-3, atol=1e-3)
        assert (batch.keys, batch.captions, batch.visits) == (
            pictures.keys,
            pictures.captions,
            pictures.visits,
        )
        assert (batch.slots, batch.num_slots) == (pictures.slots, pictures.num_slots)


def test_training_from_latents_takes_the_same_samples_as_from_pictures(
    tmp_path: Path, data: ShardDataset
) -> None:
    encode(Halves(), data, tmp_path / "out", batch_size=5)
    cached = LatentDataset(tmp_path / "out", codec_hash=Halves.content_hash, caption_field="captions")
    order = GlobalBatches(num_samples=23, global_batch=6, rank=1, world_size=2, start=12)
    for a, b in zip(
        itertools.islice(cached.endless(order), 12), endless(data, lambda: order, num_workers=0), strict=False
    ):
        assert (a.keys, a.captions, a.visits, a.slots, a.num_slots) == (
            b.keys, b.captions, b.visits, b.slots, b.num_slots,
        )  # fmt: skip


def test_any_caption_field_can_be_chosen_later(tmp_path: Path, data: ShardDataset) -> None:
    encode(Halves(), data, tmp_path / "out", batch_size=5)
    for name, captions in {"txt": {"sample 7"}, "captions": {"a7", "b7"}, "other": {"c7"}}.items():
        cached = LatentDataset(tmp_path / "out", codec_hash=Halves.content_hash, caption_field=name)
        drawn = {cached.batch([7], [visit], slots=range(1), num_slots=1).captions[0] for visit in range(30)}
        assert drawn == captions
    with pytest.raises(ValueError, match="no captions in 'text', only in captions, other, txt"):
        LatentDataset(tmp_path / "out", codec_hash=Halves.content_hash, caption_field="text")


@pytest.mark.parametrize("stop_after", [0, 1, 3, 4])
def test_an_interrupted_encoding_goes_on_and_ends_in_the_same_bytes(
    tmp_path: Path, data: ShardDataset, stop_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SECONDS_BETWEEN_SAVES", -1.0)
    encode(Halves(), data, tmp_path / "whole", batch_size=5)
    contract = contract_for(Halves.content_hash, data)
    with pytest.raises(KeyboardInterrupt):
        encode(Halves(stop_after=stop_after), data, tmp_path / "cut", batch_size=5)
    assert not is_complete(tmp_path / "cut", contract)
    with pytest.raises(FileNotFoundError, match="no complete latents"):
        LatentDataset(tmp_path / "cut", codec_hash=Halves.content_hash)
    codec = Halves()
    encode(codec, data, tmp_path / "cut", batch_size=5)
    assert codec.num_encoded == 23 - 5 * stop_after
    files = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert set(files) == {"moments.npy", "samples.jsonl", "contract.json"}
    assert {path.name: path.read_bytes() for path in (tmp_path / "cut").iterdir()} == files


def test_what_is_there_is_not_made_again(tmp_path: Path, data: ShardDataset) -> None:
    encode(Halves(), data, tmp_path / "out", batch_size=5)
    codec = Halves()
    encode(codec, data, tmp_path / "out", batch_size=5)
    assert codec.num_encoded == 0


def test_latents_of_another_autoencoder_are_refused_by_name(tmp_path: Path, data: ShardDataset) -> None:
    encode(Halves(), data, tmp_path / "out", batch_size=5)
    with pytest.raises(
        ValueError, match="made with autoencoder abababababab, but the codec here is cdcdcdcdcdcd"
    ):
        LatentDataset(tmp_path / "out", codec_hash="cd" * 32)


def test_every_codec_size_and_data_set_has_its_own_place(tmp_path: Path, data: ShardDataset) -> None:
    contracts = [
        contract_for("ab" * 32, data),
        contract_for("cd" * 32, data),
        contract_for("", data),
        contract_for("ab" * 32, ShardDataset(shards=str(tmp_path / "shards"), image_size=4)),
        contract_for("ab" * 32, ShardDataset(shards=str(tmp_path / "shards" / "00000.tar"), image_size=8)),
        contract_for(
            "ab" * 32, ShardDataset(shards=str(tmp_path / "shards"), image_size=8, background="red")
        ),
    ]
    folders = [latents_folder(tmp_path, contract) for contract in contracts]
    assert len(set(folders)) == len(folders)
    assert folders[0].parent == tmp_path / ("ab" * 6)
    assert folders[2].parent == tmp_path / "identity"


def test_random_choices_cannot_be_encoded_once(tmp_path: Path, data: ShardDataset) -> None:
    for options in ({"flip": True}, {"crop": "random"}):
        pictures = ShardDataset(shards=str(tmp_path / "shards"), image_size=8, **options)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="flip=false and crop=center"):
            encode(Halves(), pictures, tmp_path / "out", batch_size=5)


def test_a_damaged_picture_does_not_part_latents_from_captions(tmp_path: Path) -> None:
    data = write_shards(tmp_path / "shards", broken=4)
    encode(Halves(), data, tmp_path / "out", batch_size=5)
    cached = LatentDataset(tmp_path / "out", codec_hash=Halves.content_hash)
    batch = cached.batch([4, 5], [0, 0], slots=range(2), num_slots=2)
    assert batch.captions == ["sample 5", "sample 5"] and batch.keys[0] == batch.keys[1]
    assert batch.moments is not None and torch.equal(batch.moments[0], batch.moments[1])


def test_moments_that_are_not_finite_stop_the_encoding(tmp_path: Path, data: ShardDataset) -> None:
    class Diverged(Halves):
        def moments(self, images: Tensor) -> Tensor:
            return super().moments(images) * 1e9

    with pytest.raises(ValueError, match="00000/000000000 to 00000/000000004 are not finite"):
        encode(Diverged(), data, tmp_path / "out", batch_size=5)


def test_the_contract_is_written_down(tmp_path: Path, data: ShardDataset) -> None:
    encode(Halves(), data, tmp_path / "out", batch_size=5)
    contract = json.loads((tmp_path / "out" / "contract.json").read_text())
    assert contract == {
        "codec_hash": "ab" * 32,
        "shards": data.index.fingerprint,
        "image_size": 8,
        "background": "white",
        "count": 23,
    }
