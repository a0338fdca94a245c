"""Training data that is far away or has no end, for Lightning: ``ldm.data.streaming``."""

from __future__ import annotations

from collections.abc import Sequence

import lightning as L
from lightning.pytorch.utilities.types import EVAL_DATALOADERS

from ldm.data.captions import AS_WRITTEN, CaptionRecipe
from ldm.data.loading import BatchLoader
from ldm.data.pipeline import ShardDataset, in_order
from ldm.data.sample import Preparation
from ldm.data.streaming import streaming


class StreamDataModule(L.LightningDataModule):
    """Captioned pictures read from front to back, shards drawn with replacement.

    Statistically right, not exact: how often a sample was seen is not known, and a restart begins anew. Validation is
    exact, complete and the same on all processes, from shards on a disk.

    Args:
        train_shards: addresses (https://...) with braces, folders or patterns, or a list of them.
        val_shards: a folder, a pattern or a list of them; null for no validation.
        image_size: side of the square pictures, in pixels.
        batch_size: over all processes.
        num_workers: processes that read and decode, for each training process.
        caption_field: "txt", a json's field with one caption or several, or several fields with weights.
        captions: what is done to captions, and what if there is none.
        flip: mirror every other training picture. Wrong where captions speak of left and right.
        crop: of training pictures, "center" or "random".
        background: what transparent parts of a picture show.
        decode_margin: JPEGs are decoded at least so many times as large as they are shown.
        original_size_from: for size conditioning: the json's fields with height and width before packing.
        shuffle_buffer: samples in the window from which the next one is drawn.
        allow_commands: addresses for which a program is run (pipe:, gs://, ...), too.
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
        caption_field: str | dict[str, float] = "txt",
        captions: CaptionRecipe = AS_WRITTEN,
        flip: bool = False,
        crop: str = "center",
        background: str = "white",
        decode_margin: float = 2.0,
        original_size_from: Sequence[str] | None = None,
        shuffle_buffer: int = 1_000,
        allow_commands: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.train_shards = train_shards
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.shuffle_buffer = shuffle_buffer
        self.allow_commands = allow_commands
        self.preparation = Preparation(
            image_size=image_size,
            caption_field=caption_field,
            captions=captions,
            flip=flip,
            crop=crop,
            background=background,
            decode_margin=decode_margin,
            original_size_from=original_size_from,
            seed=seed,
        )
        self._val = (
            None
            if val_shards is None
            else ShardDataset(
                shards=val_shards,
                image_size=image_size,
                caption_field=caption_field,
                captions=captions,
                background=background,
                decode_margin=decode_margin,
                original_size_from=original_size_from,
                seed=seed,
            )
        )

    def train_dataloader(self) -> BatchLoader:
        trainer = self.trainer
        return streaming(
            self.train_shards,
            self.preparation,
            batch_size=self.batch_size,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
            num_workers=self.num_workers,
            shuffle_buffer=self.shuffle_buffer,
            allow_commands=self.allow_commands,
        )

    def val_dataloader(self) -> EVAL_DATALOADERS:
        if self._val is None:
            return []
        return in_order(self._val, batch_size=self.batch_size, num_workers=self.num_workers)
