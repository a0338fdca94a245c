"""Data for Lightning: pictures decoded on the way, or latents made once and read from disk.

Both yield ``ldm.interfaces.Batch``: training batches without end in the order of ``GlobalBatches``, beginning where
the run stands; validation batches in order, all of them, the same on each process.
"""

from __future__ import annotations

from collections.abc import Callable, Sized
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol, cast

import lightning as L
from lightning.pytorch.utilities.types import EVAL_DATALOADERS

from ldm.data.latents import LatentDataset, contract_for, encode, is_complete, latents_folder
from ldm.data.pipeline import BatchLoader, GlobalBatches, ShardDataset, endless, in_order
from ldm.interfaces import LatentCodec


class _Module(Protocol):
    """What is asked of the module that is being trained."""

    images_seen: int
    codec: LatentCodec


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
        return None if self.val_shards is None else self.pictures(shards=self.val_shards)

    def setup(self, stage: str) -> None:
        """Index the shards before anything is trained or encoded: a wrong path shows at once."""
        _ = self._train, self._val

    def order(self, samples: Sized) -> GlobalBatches:
        """This process's order from where the run stands now; from the beginning where there is no run."""
        trainer = self.trainer
        return GlobalBatches(
            num_samples=_first(self.num_pictures, samples),
            global_batch=self.batch_size,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
            seed=self.seed,
            start=cast(_Module, trainer.lightning_module).images_seen if trainer else 0,
        )


class ImageDataModule(_FromShards):
    """Captioned pictures from shards.

    Args:
        train_shards: a folder, a pattern or a list of them.
        val_shards: the same, or null for no validation.
        image_size: side of the square pictures, in pixels.
        batch_size: over all processes.
        num_workers: processes that decode, for each training process; 0 decodes in the training process.
        caption_field: "txt", or the json's field with several captions, of which each visit draws one.
        flip: mirror every other training picture. Wrong where captions speak of left and right.
        crop: of training pictures, "center" or "random".
        background: what transparent parts of a picture show.
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
        caption_field: str = "txt",
        flip: bool = False,
        crop: str = "center",
        background: str = "white",
        num_pictures: int | None = None,
        seed: int = 0,
    ) -> None:
        pictures = partial(
            ShardDataset,
            image_size=image_size,
            caption_field=caption_field,
            background=background,
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
        return endless(self._train, partial(self.order, self._train), num_workers=self.num_workers)

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
        folder: where latents are kept, each autoencoder's and each data set's apart.
        image_size: side of the square pictures, in pixels.
        batch_size: over all processes.
        caption_field: "txt", or the json's field with several captions, of which each visit draws one.
        background: what transparent parts of a picture show.
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
        caption_field: str = "txt",
        background: str = "white",
        encode_batch_size: int = 64,
        num_workers: int = 0,
        num_pictures: int | None = None,
        seed: int = 0,
    ) -> None:
        pictures = partial(
            ShardDataset, image_size=image_size, caption_field=caption_field, background=background, seed=seed
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
        self.caption_field = caption_field
        self.encode_batch_size = encode_batch_size

    def train_dataloader(self) -> BatchLoader:
        latents = self._encoded(self._train)
        return BatchLoader(lambda: latents.endless(self.order(latents)))

    def val_dataloader(self) -> EVAL_DATALOADERS:
        if self._val is None:
            return []
        return self._encoded(self._val).in_order(batch_size=self.batch_size)

    def _encoded(self, pictures: ShardDataset) -> LatentDataset:
        """The latents of these pictures by the module's codec, made by the first process where they are missing."""
        trainer = self.trainer
        assert trainer is not None, (
            "latents belong to a codec, so this data module works within a Trainer only"
        )
        codec = cast(_Module, trainer.lightning_module).codec
        contract = contract_for(codec.content_hash, pictures)
        folder = latents_folder(self.folder, contract)
        if trainer.is_global_zero and not is_complete(folder, contract):
            encode(
                codec,
                pictures,
                folder,
                batch_size=self.encode_batch_size,
                device=trainer.lightning_module.device,
                num_workers=self.num_workers,
            )
        trainer.strategy.barrier("latents are there")
        return LatentDataset(
            folder, codec_hash=codec.content_hash, caption_field=self.caption_field, seed=self.seed
        )


def _first(num_pictures: int | None, samples: Sized) -> int:
    """How many samples training uses: the first ``num_pictures``, or all."""
    if num_pictures is not None and num_pictures < 1:
        raise ValueError(f"num_pictures={num_pictures} must be at least 1; null trains on all pictures")
    return len(samples) if num_pictures is None else min(num_pictures, len(samples))
