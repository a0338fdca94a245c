"""The data side under a real Trainer: right samples, right start, latents made once and for their codec only."""

from __future__ import annotations

import io
import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ldm.data.buckets import Buckets
from ldm.data.order import GlobalBatches, Shuffled
from ldm.data.pipeline import in_order
from ldm.data.shards import ShardWriter
from ldm.interfaces import Batch
from ldm.training.datamodule import ImageDataModule, LatentDataModule
from tests.data.cached import Letters, write_shards

NUM_TRAIN, NUM_VAL = 21, 7


class Codec(nn.Module):
    """Moments are the pictures, twice."""

    channels, downsample = 3, 1

    def __init__(self, content_hash: str) -> None:
        super().__init__()
        self.content_hash = content_hash
        self.num_encoded = 0

    def moments(self, images: Tensor) -> Tensor:
        self.num_encoded += len(images)
        return torch.cat([images, images], dim=1)


class Recorder(L.LightningModule):
    """Trains nothing; remembers what it was given."""

    def __init__(self, codec: Codec | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.codec = codec
        self.images_seen = 0
        self.train_batches: list[Batch] = []
        self.val_batches: list[Batch] = []

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        self.train_batches.append(batch)
        self.images_seen += batch.num_slots
        return self.weight * 0

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        self.val_batches.append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["images_seen"] = self.images_seen

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.images_seen = checkpoint["images_seen"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    for split, num in (("train", NUM_TRAIN), ("val", NUM_VAL)):
        with ShardWriter(folder / split, samples_per_shard=10) as writer:
            for i in range(num):
                out = io.BytesIO()
                Image.fromarray(np.full((4, 4, 3), i, np.uint8)).save(out, "PNG")
                writer.write(
                    out.getvalue(), "png", f"{split} {i}", {"captions": [f"{split} {i}", f"{i} of {split}"]}
                )
    return folder


def fit(
    module: Recorder, data: L.LightningDataModule, folder: Path, *, steps: int, ckpt_path: Path | None = None
) -> L.Trainer:
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        val_check_interval=2,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on logging and GPUs
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return trainer


def images(shards: Path, **options: Any) -> ImageDataModule:
    usual = {
        "train_shards": str(shards / "train"),
        "val_shards": str(shards / "val"),
        "image_size": 4,
        "batch_size": 6,
    }
    return ImageDataModule(**(usual | options))


def latents(shards: Path, folder: Path, **options: Any) -> LatentDataModule:
    usual = {
        "train_shards": str(shards / "train"),
        "val_shards": str(shards / "val"),
        "image_size": 4,
        "batch_size": 6,
    }
    return LatentDataModule(folder=str(folder), **(usual | options))


def taken(batches: list[Batch]) -> list[tuple[list[str], list[int], list[str], range, int]]:
    return [(b.keys, b.visits, b.captions, b.slots, b.num_slots) for b in batches]


@pytest.mark.parametrize("kind", ["images", "latents"])
def test_num_pictures_trains_on_the_first_so_many(shards: Path, tmp_path: Path, kind: str) -> None:
    module = Recorder(Codec("abc"))
    make = images if kind == "images" else partial(latents, folder=tmp_path / "latents")
    fit(module, make(shards, num_pictures=6), tmp_path, steps=3)
    assert {frozenset(batch.keys) for batch in module.train_batches} == {
        frozenset(f"00000/00000000{i}" for i in range(6))
    }
    with pytest.raises(ValueError, match="num_pictures=0 must be at least 1"):
        fit(Recorder(Codec("abc")), make(shards, num_pictures=0), tmp_path, steps=1)


def test_training_walks_the_global_order_and_validation_is_complete(shards: Path, tmp_path: Path) -> None:
    module = Recorder()
    fit(module, images(shards, seed=3), tmp_path, steps=5)
    order = iter(GlobalBatches(walk=Shuffled(counts=[10, 10, 1], seed=3), global_batch=6))
    for batch in module.train_batches[:5]:
        requests = next(order)
        assert [int(key[-1]) + 10 * int(key[4]) for key in batch.keys] == [
            request.sample for request in requests
        ]
        assert batch.visits == [request.visit for request in requests]
        assert batch.images is not None and batch.images.shape == (6, 3, 4, 4)
        assert (batch.slots, batch.num_slots) == (range(6), 6)
    one_pass = [key for batch in module.val_batches[:2] for key in batch.keys]
    assert one_pass == [f"00000/00000000{i}" for i in range(NUM_VAL)]
    assert len(module.val_batches) == 4  # two passes of two batches
    assert taken(module.val_batches[:2]) == taken(module.val_batches[2:])


@pytest.mark.parametrize("cached", [False, True])
def test_a_restart_takes_the_samples_that_come_next(shards: Path, tmp_path: Path, cached: bool) -> None:
    def data() -> L.LightningDataModule:
        return latents(shards, tmp_path / "latents") if cached else images(shards)

    whole, first, second = (Recorder(Codec("ab" * 32)) for _ in range(3))
    fit(whole, data(), tmp_path, steps=7)
    fit(first, data(), tmp_path, steps=3).save_checkpoint(tmp_path / "a.ckpt")
    fit(second, data(), tmp_path, steps=7, ckpt_path=tmp_path / "a.ckpt")
    assert taken(first.train_batches + second.train_batches) == taken(whole.train_batches)


def test_latents_and_pictures_give_the_same_batches(shards: Path, tmp_path: Path) -> None:
    a, b = Recorder(Codec("ab" * 32)), Recorder()
    fit(a, latents(shards, tmp_path / "latents", caption_field="captions"), tmp_path, steps=5)
    fit(b, images(shards, caption_field="captions"), tmp_path, steps=5)
    assert taken(a.train_batches) == taken(b.train_batches)
    assert taken(a.val_batches) == taken(b.val_batches)
    for x, y in zip(a.train_batches, b.train_batches, strict=True):
        assert x.moments is not None and y.images is not None
        torch.testing.assert_close(x.moments[:, :3].float(), y.images, atol=1e-3, rtol=1e-3)


def test_latents_are_made_once_for_each_codec(shards: Path, tmp_path: Path) -> None:
    for content_hash, encoded in (("ab" * 32, 28), ("ab" * 32, 0), ("cd" * 32, 28), ("ab" * 32, 0), ("", 28)):
        module = Recorder(Codec(content_hash))
        fit(module, latents(shards, tmp_path / "latents"), tmp_path, steps=1)
        assert module.codec is not None and module.codec.num_encoded == encoded
    assert {path.name for path in (tmp_path / "latents").iterdir()} == {"ab" * 6, "cd" * 6, "identity"}


def test_validation_may_be_left_out(shards: Path, tmp_path: Path) -> None:
    for data in (images(shards, val_shards=None), latents(shards, tmp_path / "latents", val_shards=None)):
        module = Recorder(Codec("ab" * 32))
        fit(module, data, tmp_path, steps=3)
        assert len(module.train_batches) == 3 and not module.val_batches


def test_a_wrong_path_shows_before_anything_is_trained(shards: Path, tmp_path: Path) -> None:
    module = Recorder()
    with pytest.raises(FileNotFoundError, match="no shard"):
        fit(module, images(shards, val_shards=str(shards / "vaal.tar")), tmp_path, steps=1)
    assert not module.train_batches


def test_the_training_set_can_be_walked_in_order_without_a_trainer(shards: Path) -> None:
    data = images(shards, flip=True, crop="random")
    keys = [key for batch in data.train_in_order() for key in batch.keys]
    assert keys == sorted(keys) and len(keys) == NUM_TRAIN
    assert sum(len(batch) for batch in data.train_in_order(stop=8)) == 8
    assert next(iter(data.train_dataloader())).num_slots == 6


# --- what reaches the network ----------------------------------------------------------------------------------------

SHAPES = Buckets(multiple_of=2, slack=0.25)
CAPTIONS = {"captions": 2.0, "txt": 1.0}


def shaped(folder: Path) -> Path:
    """Twenty-three pictures of several shapes, and as many for validation."""
    for split in ("train", "val"):
        write_shards(folder / split)
    return folder


def several(folder: Path, tmp_path: Path, kind: str, **options: Any) -> L.LightningDataModule:
    """The same data from pictures, from latents, or from latents and text."""
    options = {"image_size": 8, "buckets": SHAPES, "caption_field": CAPTIONS, "seed": 3} | options
    if kind == "pictures":
        return images(folder, **options)
    text = str(tmp_path / "text") if kind == "text" else None
    return latents(folder, tmp_path / "latents", text_folder=text, **options)


def with_text(codec: Codec) -> Recorder:
    module = Recorder(codec)
    module.text_encoder = Letters()  # type: ignore[assignment]
    return module


def test_pictures_latents_and_text_give_the_same_batches_in_buckets(tmp_path: Path) -> None:
    folder = shaped(tmp_path)
    runs = {kind: with_text(Codec("ab" * 32)) for kind in ("pictures", "latents", "text")}
    for kind, module in runs.items():
        fit(module, several(folder, tmp_path, kind), tmp_path, steps=9)
    batches = {kind: module.train_batches + module.val_batches for kind, module in runs.items()}
    assert len({batch.images.shape[2:] for batch in batches["pictures"] if batch.images is not None}) == 3
    for pictures, *others in zip(*batches.values(), strict=True):
        for cached in others:
            assert taken([cached]) == taken([pictures]) and torch.equal(cached.sizes, pictures.sizes)
            assert cached.moments is not None and pictures.images is not None
            torch.testing.assert_close(cached.moments[:, :3].float(), pictures.images, atol=1e-3, rtol=1e-3)
        text = others[1].text
        assert text is not None and others[0].text is None
        kept = torch.ones(len(pictures), dtype=torch.bool)
        expected = Letters()(pictures.captions)
        torch.testing.assert_close(text.conditioning(kept).tokens, expected.tokens, atol=1e-3, rtol=1e-3)
    sizes = torch.cat([batch.sizes for batch in batches["pictures"]])
    assert {tuple(size) for size in sizes[:, :2].tolist()} == {(8, 8), (6, 11), (11, 6), (9, 9)}


@pytest.mark.parametrize("kind", ["pictures", "text"])
def test_a_run_in_buckets_goes_on_where_it_stood(tmp_path: Path, kind: str) -> None:
    folder = shaped(tmp_path)
    whole, first, second = (with_text(Codec("ab" * 32)) for _ in range(3))
    fit(whole, several(folder, tmp_path, kind), tmp_path, steps=8)
    fit(first, several(folder, tmp_path, kind), tmp_path, steps=3).save_checkpoint(tmp_path / "a.ckpt")
    fit(second, several(folder, tmp_path, kind), tmp_path, steps=8, ckpt_path=tmp_path / "a.ckpt")
    assert taken(first.train_batches + second.train_batches) == taken(whole.train_batches)
    changed = several(folder, tmp_path, kind, buckets=None)
    with pytest.raises(ValueError, match="its buckets have changed"):
        fit(with_text(Codec("ab" * 32)), changed, tmp_path, steps=8, ckpt_path=tmp_path / "a.ckpt")


def test_what_is_not_encoded_may_be_an_error(tmp_path: Path) -> None:
    folder = shaped(tmp_path)
    with pytest.raises(FileNotFoundError, match="ldm encode"):
        data = several(folder, tmp_path, "latents", encode_missing=False)
        fit(with_text(Codec("ab" * 32)), data, tmp_path, steps=1)


def test_sizes_that_the_network_cannot_take_show_before_anything_is_trained(tmp_path: Path) -> None:
    module = with_text(Codec("ab" * 32))
    module.network = SimpleNamespace(patch_size=4)  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"the bucket 10 x 6 is not divisible by 4.*buckets.multiple_of=4"):
        fit(module, several(shaped(tmp_path), tmp_path, "pictures"), tmp_path, steps=1)


@pytest.mark.parametrize("split", ["train", "val"])
def test_what_is_measured_has_the_same_captions_for_every_seed(shards: Path, split: str) -> None:
    def captions(seed: int) -> list[str]:
        data = images(shards, caption_field="captions", seed=seed)
        return [
            caption for batch in in_order(data.measured(split), batch_size=4) for caption in batch.captions
        ]

    def trained(seed: int) -> list[str]:
        data = images(shards, caption_field="captions", seed=seed)
        return [caption for batch in data.val_dataloader() for caption in batch.captions]

    assert captions(0) == captions(7) and len(set(captions(0))) > 5
    assert trained(0) != trained(7)
