"""Gradient accumulation: the step's batch in pieces, one after another, as if it had been one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning as L
from lightning.pytorch.utilities.types import EVAL_DATALOADERS

from ldm.data.pipeline import BatchLoader
from ldm.interfaces import Batch


class InPieces(L.LightningDataModule):
    """A data module whose training batches come in pieces: ``batch_size`` stays what an optimizer step sees.

    Lightning's ``accumulate_grad_batches`` alone would make the batch, and with it the recipe, larger. Places in the
    global batch stay as they are, so a step in pieces draws the same times and noise as a step in one.

    Args:
        data: The data module.
        num: Pieces of each batch.
    """

    def __init__(self, data: Any, *, num: int) -> None:
        super().__init__()
        self.data = data
        self.num = num

    @property
    def batch_size(self) -> int:
        return int(self.data.batch_size)

    def setup(self, stage: str) -> None:
        self.data.trainer = self.trainer
        self.data.setup(stage)

    def train_dataloader(self) -> BatchLoader:
        batches = self.data.train_dataloader()

        def pieces() -> Iterator[Batch]:
            for batch in batches:
                yield from batch.pieces(self.num)

        return BatchLoader(pieces)

    def val_dataloader(self) -> EVAL_DATALOADERS:
        return self.data.val_dataloader()
