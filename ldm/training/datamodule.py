"""Data for Lightning: pictures decoded on the way, or latents made once and read from disk.

Both yield ``ldm.interfaces.Batch``: training batches without end in an exact order (``ldm.data.order``), beginning
where the run stands; validation batches in order, all of them, the same on each process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from lightning.pytorch.utilities.types import EVAL_DATALOADERS

from ldm.data.bad_samples import BadSamples
from ldm.data.buckets import Sizes
from ldm.data.captions import AS_WRITTEN, CaptionRecipe
from ldm.data.latent_dataset import LatentDataset
from ldm.data.latents import contract_for, encode, latent_parts
from ldm.data.loading import BatchLoader
from ldm.data.order import WINDOW
from ldm.data.parts import missing
from ldm.data.pipeline import ShardDataset, endless, in_order
from ldm.data.text_cache import TextCache, encode_text, text_contract, text_folder, text_parts
from ldm.training.shard_data import FedModule, FromShards

BEARABLE = BadSamples()


class ImageDataModule(FromShards):
    """Captioned pictures from shards.

    Args:
        train_shards: a folder, a pattern or a list of them; null with ``sources``.
        val_shards: the same, or null for no validation.
        sources: [{shards: ..., weight: ...}, ...] to train on several in fixed proportions; see
            ``ldm.data.blend.Source``.
        filters: conditions that samples must fulfil, like "min_side >= 256 and aesthetic > 5".
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
        decode_margin: JPEGs are decoded at least so many times as large as they are shown: 1 is fastest, 2 nearest.
        window: samples that are shuffled among each other; up to so many are shuffled perfectly.
        bad_samples: how many samples may be bad.
        accept_change: go on with a run whose shards, filters or seed have changed, in the new order.
        num_pictures: train on the first so many pictures only; null for all.
        seed: of the order and the choices.
    """

    def __init__(
        self,
        *,
        train_shards: str | list[str] | None,
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
        sources: Sequence[Mapping[str, Any]] = (),
        filters: Sequence[str] = (),
        decode_margin: float = 2.0,
        window: int = WINDOW,
        bad_samples: BadSamples = BEARABLE,
        accept_change: bool = False,
        num_pictures: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            train_shards=train_shards,
            val_shards=val_shards,
            sources=sources,
            filters=filters,
            image_size=image_size,
            buckets=buckets,
            caption_field=caption_field,
            captions=captions,
            background=background,
            original_size_from=original_size_from,
            decode_margin=decode_margin,
            batch_size=batch_size,
            window=window,
            num_workers=num_workers,
            num_pictures=num_pictures,
            bad_samples=bad_samples,
            accept_change=accept_change,
            seed=seed,
            at_random={"flip": flip, "crop": crop},
        )

    def train_dataloader(self) -> BatchLoader:
        return endless(self._train, self.order, num_workers=self.num_workers, ledger=self.ledger)

    def val_dataloader(self) -> EVAL_DATALOADERS:
        if self._val is None:
            return []
        return in_order(self._val, batch_size=self.batch_size, num_workers=self.num_workers)

    def train_in_order(self, *, stop: int | None = None) -> BatchLoader:
        """Every training picture once, center crop and not mirrored; to measure something over the training set.

        Args:
            stop: how many pictures at most; None for all.
        """
        pictures = self.measured("train")
        return in_order(pictures, batch_size=self.batch_size, num_workers=self.num_workers, stop=stop)


class LatentDataModule(FromShards):
    """Captioned latents. What the module's codec has not yet encoded is encoded when training begins.

    Args:
        train_shards: the pictures: a folder, a pattern or a list of them; null with ``sources``.
        val_shards: the same, or null for no validation.
        sources: [{shards: ..., weight: ...}, ...] to train on several in fixed proportions; see
            ``ldm.data.blend.Source``.
        filters: conditions that samples must fulfil, like "min_side >= 256 and aesthetic > 5".
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
        decode_margin: JPEGs are decoded at least so many times as large as they are shown: 1 is fastest, 2 nearest.
        window: samples that are shuffled among each other; up to so many are shuffled perfectly.
        bad_samples: how many samples may be bad.
        accept_change: go on with a run whose shards, filters or seed have changed, in the new order.
        num_pictures: train on the first so many pictures only; null for all.
        seed: of the order and the choice of captions.
    """

    def __init__(
        self,
        *,
        train_shards: str | list[str] | None,
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
        sources: Sequence[Mapping[str, Any]] = (),
        filters: Sequence[str] = (),
        decode_margin: float = 2.0,
        window: int = WINDOW,
        bad_samples: BadSamples = BEARABLE,
        accept_change: bool = False,
        encode_batch_size: int = 64,
        num_workers: int = 0,
        num_pictures: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            train_shards=train_shards,
            val_shards=val_shards,
            sources=sources,
            filters=filters,
            image_size=image_size,
            buckets=buckets,
            caption_field=caption_field,
            captions=captions,
            background=background,
            original_size_from=original_size_from,
            decode_margin=decode_margin,
            batch_size=batch_size,
            window=window,
            num_workers=num_workers,
            num_pictures=num_pictures,
            bad_samples=bad_samples,
            accept_change=accept_change,
            seed=seed,
            at_random={},
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
        module = cast(FedModule, trainer.lightning_module)
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
                ledger=self.ledger,
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
