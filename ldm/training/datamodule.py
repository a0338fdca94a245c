"""Data for Lightning: pictures decoded on the way, or latents made once and read from disk.

Both yield ``ldm.interfaces.Batch``: training batches without end in the order of ``GlobalBatches``, beginning where
the run stands; validation batches in order, all of them, the same on each process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol, cast

import lightning as L
from lightning.pytorch.utilities.types import EVAL_DATALOADERS

from ldm.data.bucket_order import BucketBatches
from ldm.data.buckets import Sizes
from ldm.data.captions import AS_WRITTEN, CaptionRecipe
from ldm.data.latent_dataset import LatentDataset
from ldm.data.latents import contract_for, encode, latent_parts
from ldm.data.parts import missing
from ldm.data.pipeline import BatchLoader, GlobalBatches, Order, ShardDataset, endless, in_order
from ldm.data.text_cache import TextCache, encode_text, text_contract, text_folder, text_parts
from ldm.interfaces import LatentCodec, TextEncoder


class _Module(Protocol):
    """What is asked of the module that is being trained."""

    images_seen: int
    codec: LatentCodec
    text_encoder: TextEncoder


class _FromShards(L.LightningDataModule):
    """What both have in common: shards that are indexed before anything else is done.

    Args:
        pictures: (shards) -> the pictures as they are measured and validated.
        training_pictures: (shards) -> the pictures as they are trained on.
    """

    def __init__(
        self,
        *,
        train_shards: str | list[str],
        val_shards: str | list[str] | None,
        pictures: Callable[..., ShardDataset],
        training_pictures: Callable[..., ShardDataset],
        batch_size: int,
        num_workers: int,
        num_pictures: int | None,
        seed: int,
    ) -> None:
        super().__init__()
        self.train_shards, self.val_shards = train_shards, val_shards
        self.pictures, self.training_pictures = pictures, training_pictures
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.num_pictures = num_pictures
        self.seed = seed

    @cached_property
    def _train(self) -> ShardDataset:
        return self.training_pictures(shards=self.train_shards)

    @cached_property
    def _val(self) -> ShardDataset | None:
        if self.val_shards is None:
            return None
        of_training = self._train.buckets.within(self._train.assignment.sizes)
        return self.pictures(shards=self.val_shards, buckets=of_training)

    def setup(self, stage: str) -> None:
        """Index the shards before anything is trained or encoded: a wrong path shows at once."""
        _ = self._train, self._val

    def order(self) -> Order:
        """This process's order from where the run stands now; from the beginning where there is no run."""
        trainer = self.trainer
        place: dict[str, int] = {
            "global_batch": self.batch_size,
            "rank": trainer.global_rank if trainer else 0,
            "world_size": trainer.world_size if trainer else 1,
            "seed": self.seed,
            "start": cast(_Module, trainer.lightning_module).images_seen if trainer else 0,
        }
        num = _first(self.num_pictures, self._train)
        assignment = self._train.assignment.first(num)
        if len(assignment.sizes) == 1 and not assignment.left_out:
            return GlobalBatches(num_samples=num, **place)
        return BucketBatches(assignment=assignment, **place)


class ImageDataModule(_FromShards):
    """Captioned pictures from shards.

    Args:
        train_shards: a folder, a pattern or a list of them.
        val_shards: the same, or null for no validation.
        image_size: side of the square pictures, in pixels; with buckets, of the square with as many pixels.
        batch_size: over all processes.
        buckets: in which sizes pictures come out; None for the square. A step takes its pictures from one of them.
        num_workers: processes that decode, for each training process; 0 decodes in the training process.
        caption_field: "txt", a json's field with one caption or several, or several fields with weights.
        captions: what is done to captions, and what if there is none.
        flip: mirror every other training picture. Wrong where captions speak of left and right.
        crop: of training pictures, "center" or "random".
        background: what transparent parts of a picture show.
        original_size_from: for size conditioning: the json's fields with height and width before packing.
        num_pictures: train on the first so many pictures only; null for all.
        seed: of the order and the choices.
    """

    def __init__(
        self,
        *,
        train_shards: str | list[str],
        val_shards: str | list[str] | None,
        image_size: int,
        batch_size: int,
        num_workers: int = 0,
        buckets: Sizes | None = None,
        caption_field: str | dict[str, float] = "txt",
        captions: CaptionRecipe = AS_WRITTEN,
        flip: bool = False,
        crop: str = "center",
        background: str = "white",
        original_size_from: Sequence[str] | None = None,
        num_pictures: int | None = None,
        seed: int = 0,
    ) -> None:
        pictures = partial(
            ShardDataset,
            image_size=image_size,
            buckets=buckets,
            caption_field=caption_field,
            captions=captions,
            background=background,
            original_size_from=original_size_from,
            seed=seed,
        )
        super().__init__(
            train_shards=train_shards,
            val_shards=val_shards,
            pictures=pictures,
            training_pictures=partial(pictures, flip=flip, crop=crop),
            batch_size=batch_size,
            num_workers=num_workers,
            num_pictures=num_pictures,
            seed=seed,
        )

    def train_dataloader(self) -> BatchLoader:
        return endless(self._train, self.order, num_workers=self.num_workers)

    def val_dataloader(self) -> EVAL_DATALOADERS:
        if self._val is None:
            return []
        return in_order(self._val, batch_size=self.batch_size, num_workers=self.num_workers)

    def train_in_order(self, *, stop: int | None = None) -> BatchLoader:
        """Every training picture once, center crop and not mirrored; to measure something over the training set.

        Args:
            stop: how many pictures at most; None for all.
        """
        pictures = self.pictures(shards=self.train_shards)
        return in_order(pictures, batch_size=self.batch_size, num_workers=self.num_workers, stop=stop)


class LatentDataModule(_FromShards):
    """Captioned latents. What the module's codec has not yet encoded is encoded when training begins.

    Args:
        train_shards: the pictures: a folder, a pattern or a list of them.
        val_shards: the same, or null for no validation.
        folder: where latents are kept, each autoencoder's and each shard's apart.
        text_folder: where embeddings of captions are kept, which a pretrained text encoder makes once; None encodes
            captions in training.
        encode_missing: make what is not there when training begins; otherwise it is an error.
        image_size: side of the square pictures, in pixels; with buckets, of the square with as many pixels.
        batch_size: over all processes.
        buckets: in which sizes pictures come out; None for the square. A step takes its pictures from one of them.
        caption_field: "txt", a json's field with one caption or several, or several fields with weights.
        captions: what is done to captions, and what if there is none.
        background: what transparent parts of a picture show.
        original_size_from: for size conditioning: the json's fields with height and width before packing.
        encode_batch_size: pictures at a time while encoding.
        num_workers: processes that decode pictures while encoding; 0 decodes in the training process.
        num_pictures: train on the first so many pictures only; null for all.
        seed: of the order and the choice of captions.
    """

    def __init__(
        self,
        *,
        train_shards: str | list[str],
        val_shards: str | list[str] | None,
        folder: str,
        image_size: int,
        batch_size: int,
        text_folder: str | None = None,
        encode_missing: bool = True,
        buckets: Sizes | None = None,
        caption_field: str | dict[str, float] = "txt",
        captions: CaptionRecipe = AS_WRITTEN,
        background: str = "white",
        original_size_from: Sequence[str] | None = None,
        encode_batch_size: int = 64,
        num_workers: int = 0,
        num_pictures: int | None = None,
        seed: int = 0,
    ) -> None:
        pictures = partial(
            ShardDataset,
            image_size=image_size,
            buckets=buckets,
            caption_field=caption_field,
            captions=captions,
            background=background,
            original_size_from=original_size_from,
            seed=seed,
        )
        super().__init__(
            train_shards=train_shards,
            val_shards=val_shards,
            pictures=pictures,
            training_pictures=pictures,
            batch_size=batch_size,
            num_workers=num_workers,
            num_pictures=num_pictures,
            seed=seed,
        )
        self.folder = Path(folder)
        self.text_folder = text_folder
        self.encode_missing = encode_missing
        self.encode_batch_size = encode_batch_size

    def train_dataloader(self) -> BatchLoader:
        latents = self._encoded(self._train)
        return BatchLoader(lambda: latents.endless(self.order()))

    def val_dataloader(self) -> EVAL_DATALOADERS:
        if self._val is None:
            return []
        return self._encoded(self._val).in_order(batch_size=self.batch_size)

    def _encoded(self, pictures: ShardDataset) -> LatentDataset:
        """The latents of these pictures by the module's codec, and their text; all processes make what is missing."""
        trainer = self.trainer
        assert trainer is not None, (
            "latents belong to a codec, so this data module works within a Trainer only"
        )
        module = cast(_Module, trainer.lightning_module)
        share = {"rank": trainer.global_rank, "world_size": trainer.world_size}
        folder = contract_for(module.codec.content_hash, pictures).folder(self.folder)
        if self.encode_missing and missing(latent_parts(pictures), folder):
            encode(
                module.codec,
                pictures,
                folder,
                batch_size=self.encode_batch_size,
                device=trainer.lightning_module.device,
                num_workers=self.num_workers,
                **share,
            )
        text = None
        if self.text_folder is not None:
            text = text_folder(self.text_folder, text_contract(module.text_encoder, pictures))
            if self.encode_missing and missing(text_parts(pictures), text):
                encode_text(module.text_encoder, pictures, text, batch_size=self.encode_batch_size, **share)
        trainer.strategy.barrier("latents and text are there")
        cached = None if text is None else TextCache(text, pictures, module.text_encoder)
        return LatentDataset(folder, pictures, codec_hash=module.codec.content_hash, text=cached)


def _first(num_pictures: int | None, samples: Sized) -> int:
    """How many samples training uses: the first ``num_pictures``, or all."""
    if num_pictures is not None and num_pictures < 1:
        raise ValueError(f"num_pictures={num_pictures} must be at least 1; null trains on all pictures")
    return len(samples) if num_pictures is None else min(num_pictures, len(samples))
