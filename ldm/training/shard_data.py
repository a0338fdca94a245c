"""What every data module over shards has: the order of a run's samples, where the run stands in it, and what was bad.

Shards are indexed before anything else is done. Training batches come in an exact order (``ldm.data.order``) and begin
where the run stands; a checkpoint keeps what that order depends on, and other data are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol, cast

import lightning as L

from ldm.data.bad_samples import BadSamples, Ledger, skipped_file
from ldm.data.blend import order_of, sources_of
from ldm.data.buckets import Sizes, check_sizes
from ldm.data.captions import CaptionRecipe
from ldm.data.mixture import Mixture
from ldm.data.order import GlobalBatches, Order
from ldm.data.pipeline import ShardDataset
from ldm.interfaces import LatentCodec, TextEncoder

MEASURED_SEED = 0  # of the captions that are drawn for measuring


class FedModule(Protocol):
    """What is asked of the module that is being trained."""

    images_seen: int
    codec: LatentCodec
    text_encoder: TextEncoder


class FromShards(L.LightningDataModule):
    """Captioned pictures from shards, by number; what is handed over is said by who builds on this.

    ``pictures`` makes the data set of some shards as it is measured and validated. See ``ImageDataModule`` for the
    arguments.

    Args:
        at_random: arguments of ``ShardDataset`` that draw anew at each visit, for the training pictures alone.
    """

    def __init__(
        self,
        *,
        train_shards: str | list[str] | None,
        val_shards: str | list[str] | None,
        sources: Sequence[Mapping[str, Any]],
        filters: Sequence[str],
        image_size: int,
        buckets: Sizes | None,
        caption_field: str | dict[str, float],
        captions: CaptionRecipe,
        background: str,
        original_size_from: Sequence[str] | None,
        decode_margin: float,
        batch_size: int,
        window: int,
        num_workers: int,
        num_pictures: int | None,
        bad_samples: BadSamples,
        accept_change: bool,
        seed: int,
        at_random: Mapping[str, Any],
    ) -> None:
        super().__init__()
        if (train_shards is None) == (not sources):
            raise ValueError("give either data.train_shards, or null for it and data.sources")
        self.train_shards, self.val_shards = train_shards, val_shards
        self.sources = sources_of(sources)
        self.pictures = partial(
            ShardDataset,
            image_size=image_size,
            buckets=buckets,
            caption_field=caption_field,
            captions=captions,
            background=background,
            original_size_from=original_size_from,
            filters=filters,
            decode_margin=decode_margin,
            seed=seed,
        )
        self._at_random = at_random
        self.batch_size = batch_size
        self.window = window
        self.num_workers = num_workers
        self.num_pictures = num_pictures
        self.bad_samples = bad_samples
        self.accept_change = accept_change
        self.seed = seed

    @cached_property
    def _train(self) -> ShardDataset:
        return self.pictures(shards=self.train_shards, sources=self.sources, **self._at_random)

    @cached_property
    def _val(self) -> ShardDataset | None:
        if self.val_shards is None:
            return None
        return self._validation()

    def _validation(self, **others: Any) -> ShardDataset:
        of_training = self._train.buckets.within(self._train.assignment.sizes)
        return self.pictures(shards=self.val_shards, buckets=of_training, **others)

    def measured(self, split: str) -> ShardDataset:
        """The pictures of "train" or "val" as they are measured: center crop, not mirrored.

        Captions are drawn by a seed of their own: runs that differ by theirs are measured alike.

        Raises:
            ValueError: There is no such set.
        """
        if split == "train":
            return self.pictures(shards=self.train_shards, sources=self.sources, seed=MEASURED_SEED)
        if split != "val" or self.val_shards is None:
            raise ValueError(
                f"the run has no set {split!r}: say train, or val where data.val_shards is given"
            )
        return self._validation(seed=MEASURED_SEED)

    def setup(self, stage: str) -> None:
        """Index the shards before anything is trained or encoded: what is wrong with them shows at once."""
        module = self.trainer.lightning_module if self.trainer else None
        codec, network = getattr(module, "codec", None), getattr(module, "network", None)
        unit = int(getattr(codec, "downsample", 1)) * int(getattr(network, "patch_size", 1))
        check_sizes(self._train.assignment.sizes, unit)
        _ = self._val

    def order(self) -> Order:
        """This process's order from where the run stands now; from the beginning where there is no run."""
        trainer = self.trainer
        place: dict[str, int] = {
            "global_batch": self.batch_size,
            "rank": trainer.global_rank if trainer else 0,
            "world_size": trainer.world_size if trainer else 1,
            "seed": self.seed,
            "start": cast(FedModule, trainer.lightning_module).images_seen if trainer else 0,
        }
        return order_of(self._train, num=_first(self.num_pictures, self._train), window=self.window, **place)

    @cached_property
    def ledger(self) -> Ledger:
        """What this process has taken, and what of it was bad; listed in the run folder."""
        trainer = self.trainer
        file = skipped_file(Path(trainer.default_root_dir), trainer.global_rank) if trainer else None
        ledger = Ledger(self.bad_samples, file=file)
        ledger.note(self._train.index.skipped)
        return ledger

    def counts(self) -> dict[str, float]:
        """Bad samples that this process has replaced; and samples taken from each of several sources, in all."""
        found = {"data/bad_samples": float(self.ledger.bad)}
        order = self.order()
        if isinstance(order, GlobalBatches) and isinstance(order.walk, Mixture):
            taken = zip(self._train.sources, order.walk.taken(order.start), strict=True)
            found |= {f"data/from_{source.name}": float(count) for source, count in taken}
        return found

    # --- the position of a run ----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """With the number of pictures seen, which the module keeps, this is a run's whole position in its data."""
        train = self._train
        return {
            "fingerprint": train.index.fingerprint,
            "buckets": train.assignment.fingerprint,
            "seed": self.seed,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        now = self.state_dict()
        for name, what in (
            ("fingerprint", "the shards or filters have changed"),
            ("buckets", "its buckets have changed"),
            ("seed", "data.seed has changed"),
        ):
            if state_dict.get(name, now[name]) != now[name] and not self.accept_change:
                raise ValueError(
                    f"this run was trained on data in another order: {what} ({state_dict[name]}, now {now[name]}). "
                    f"Give it what it began with, or go on in the new order with data.accept_change=true"
                )


def _first(num_pictures: int | None, samples: Sized) -> int:
    """How many samples training uses: the first ``num_pictures``, or all."""
    if num_pictures is not None and num_pictures < 1:
        raise ValueError(f"num_pictures={num_pictures} must be at least 1; null trains on all pictures")
    return len(samples) if num_pictures is None else min(num_pictures, len(samples))
