"""What the modules of all tasks share: the image counter, and what it drives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from ldm.interfaces import Batch
from ldm.nn.blocks import Execution, HasBlocks
from ldm.nn.fitting import HasShape, misfits
from ldm.training.bad_steps import settle
from ldm.training.callbacks import is_logged
from ldm.training.fsdp import FullySharded
from ldm.training.optim import LearningRateSchedule, OptimizerRecipe, set_learning_rate

NEVER_WEIGHTS = {"_current_fx_name", "images_seen"}


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
        self._step_values: dict[str, Tensor] = {}  # of the pieces of this step so far

    def __setattr__(self, name: str, value: Any) -> None:
        """Lightning writes down the name of each hook that it calls, forty times a step, and torch's own way of setting
        anything first looks whether it is a weight."""
        if name in NEVER_WEIGHTS:
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    @abstractmethod
    def parts(self) -> dict[str, nn.Module]:
        """What is trained, averaged and written into checkpoints."""

    def setup(self, stage: str) -> None:
        """In training only: sampling a few pictures would wait longer for a compiler than for them."""
        if stage == "fit":
            parts = list(self.parts().values())
            for part in [part for part in parts if isinstance(part, HasBlocks)] or parts:
                self.execution(part)
            # DDP would send what is frozen from process to process once, and its buffers at every step.
            self._ddp_params_and_buffers_to_ignore = self.frozen_names()

    def configure_model(self) -> None:
        """Under FSDP the trained parts are spread over the processes, before the optimizer is made of them."""
        if isinstance(self.trainer.strategy, FullySharded):
            self.trainer.strategy.shard(self.parts())

    def frozen_names(self) -> list[str]:
        """Parameters and buffers of what is not trained: neither sent between processes nor averaged."""
        trained = {id(x) for part in self.parts().values() for x in [*part.parameters(), *part.buffers()]}
        every = [*self.named_parameters(), *self.named_buffers()]
        return [name for name, x in every if id(x) not in trained]

    def count(self, batch: Batch) -> None:
        """In the step itself, not in a hook after it: callbacks that save at the end of a step must see it done.

        Pictures count when their step is complete: gradients that were only accumulated are in no checkpoint.
        """
        if batch.completes_step:
            self.images_seen += batch.num_slots
            if self._trainer is not None and is_logged(self.trainer):
                self.log("train/images_seen", float(self.images_seen), batch_size=len(batch))

    def log_step(self, values: Mapping[str, Tensor], batch: Batch) -> None:
        """Log means over the step's global batch: over its pieces and over all processes.

        Only at steps that are written down: Lightning's bookkeeping and a reduction over processes would cost every
        step more than the rest of the loop.

        Args:
            values: Means over ``batch``, by their names.
            batch: The step's batch on this process, or a piece of it.
        """
        if self._trainer is None or not is_logged(self.trainer):  # a step made by hand has nowhere to log
            return
        share = 1 / self.trainer.accumulate_grad_batches
        for name, value in values.items():
            self._step_values[name] = self._step_values.get(name, 0.0) + share * value.detach()
        if batch.completes_step:
            self.log_dict(self._step_values, batch_size=len(batch), sync_dist=True)
            self._step_values = {}

    def on_train_batch_start(self, batch: Batch, batch_index: int) -> None:
        factor = self.lr_schedule(self.images_seen, self.num_images)
        set_learning_rate(self.trainer.optimizers, factor)
        if is_logged(self.trainer):
            self.log("train/lr_factor", factor, batch_size=len(batch))

    def on_validation_model_zero_grad(self) -> None:
        settle(self.trainer)
        super().on_validation_model_zero_grad()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parts())

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch.to(device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["images_seen"] = self.images_seen

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        refuse_other_shapes(self, checkpoint["state_dict"])
        self.images_seen = checkpoint["images_seen"]


def refuse_other_shapes(module: nn.Module, state: Mapping[str, HasShape]) -> None:
    """
    Raises:
        ValueError: Weights of a checkpoint have other shapes than the module's; up to five are named.
    """
    if wrong := misfits(module, state, most=5, names=False):
        raise ValueError(
            f"the checkpoint is of a network of another size: {wrong}; resume with the config that it was trained with"
        )
