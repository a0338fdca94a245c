"""What the modules of all tasks share: the image counter, and what it drives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import lightning as L
import torch
from torch import nn

from ldm.interfaces import Batch
from ldm.nn.blocks import Execution, HasBlocks
from ldm.training.optim import LearningRateSchedule, OptimizerRecipe, set_learning_rate


class TrainingModule(L.LightningModule, ABC):
    """Base of the tasks. A subclass calls ``count`` once in each training step.

    Args:
        optimizer: Recipe over the trained parts.
        lr_schedule: Factor on the learning rate as a function of the images seen.
        num_images: Pictures to train on: the length of training.
        execution: How the trained parts' blocks are run: compiled, checkpointed.
        seed: Of the task's random choices.

    Raises:
        ValueError: ``num_images`` is less than 1.
    """

    def __init__(
        self,
        *,
        optimizer: OptimizerRecipe,
        lr_schedule: LearningRateSchedule,
        num_images: int,
        execution: Execution | None,
        seed: int,
    ) -> None:
        super().__init__()
        if num_images < 1:
            raise ValueError(f"num_images={num_images} must be at least 1")
        self.optimizer = optimizer
        self.lr_schedule = lr_schedule
        self.num_images = num_images
        self.execution = execution or Execution()
        self.seed = seed
        self.images_seen = 0  # over all processes; drives data order, learning rate and every interval

    @abstractmethod
    def parts(self) -> dict[str, nn.Module]:
        """What is trained, averaged and written into checkpoints."""

    def setup(self, stage: str) -> None:
        """In training only: sampling a few pictures would wait longer for a compiler than for them."""
        if stage == "fit":
            parts = list(self.parts().values())
            for part in [part for part in parts if isinstance(part, HasBlocks)] or parts:
                self.execution(part)

    def count(self, batch: Batch) -> None:
        """In the step itself, not in a hook after it: callbacks that save at the end of a step must see it done."""
        self.images_seen += batch.num_slots
        self.log("train/images_seen", float(self.images_seen), batch_size=len(batch))

    def on_train_batch_start(self, batch: Batch, batch_index: int) -> None:
        factor = self.lr_schedule(self.images_seen, self.num_images)
        set_learning_rate(self.trainer.optimizers, factor)
        self.log("train/lr_factor", factor, batch_size=len(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parts())

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch.to(device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["images_seen"] = self.images_seen

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.images_seen = checkpoint["images_seen"]
