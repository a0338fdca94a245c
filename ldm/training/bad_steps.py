"""Steps that must not be made, of a loss or gradient that is not finite; and losses that stand out, with their keys."""

from __future__ import annotations

import json
import logging
import math
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from ldm.interfaces import Batch
from ldm.training.callbacks import ClipGradients, untimed
from ldm.training.capsule import capsule_folder, write_capsule
from ldm.training.sharded import full

log = logging.getLogger(__name__)

MAD_TO_SIGMA = 1.4826  # the standard deviation of a normal law over its median absolute deviation
FEWEST = 32  # losses from which on a threshold is believed


class TooManyBadSteps(ValueError):
    """The training cannot go on by itself."""


class BadSteps(Callback):
    """Leave out each step whose loss or gradient is not finite; stop after several in a row.

    Neither weights nor optimizer state nor averages nor running statistics see such a step, so no checkpoint does. It
    is counted in ``train/bad_steps``, and its pictures as seen. The first one of a run writes a capsule: ``ldm replay``
    makes that step again. All processes decide alike without asking each other: a loss that is not finite makes its
    gradient so, and the sum over the processes carries that to all.

    List it after the clipping of gradients, whose norm it reads. Reading waits for the step's backward pass, which on a
    GPU ends the head start of the CPU there.

    Args:
        stop_after: Bad steps in a row that end the training.
        spike: A loss above median + spike * 1.4826 * median absolute deviation of the last ones is noted in
            spikes.jsonl in the run folder, with the keys of its samples; a normal law's share beyond 6 is 1e-9. Null
            notes none.
        window: How many losses these are.
    """

    def __init__(self, *, stop_after: int = 10, spike: float | None = 8.0, window: int = 256) -> None:
        if stop_after < 1 or window < FEWEST:
            raise ValueError(
                f"BadSteps: stop_after={stop_after} must be at least 1 and window={window} {FEWEST}"
            )
        self.stop_after = stop_after
        self.spike = spike
        self.window = window
        self.count = 0
        self.in_row = 0
        self.capsule: str | None = None  # the run's, relative to its folder
        self.skipped = False  # the step that is being made or was made last
        self.losses: deque[float] = deque(maxlen=window)
        self._pieces: list[Batch] = []
        self._piece_losses: list[Tensor] = []
        self._statistics: list[
            Tensor
        ] = []  # running ones, which a forward pass has changed before anything is known

    # ------------------------------------------------------------------------------------------ Lightning hooks

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._statistics = [x.clone() for x in running_statistics(pl_module)]

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        if not self._pieces:
            self.skipped = False
        self._pieces.append(batch)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        kept = loss.detach()
        self._piece_losses.append(kept)
        if loss.requires_grad:
            loss.register_hook(lambda gradient: torch.where(torch.isfinite(kept), gradient, torch.nan))

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        norm = gradient_norm(trainer, optimizer)
        if math.isfinite(float(norm)):
            return
        self.skipped = True
        if self.capsule is None and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._write_capsule(trainer, pl_module)
        optimizer.zero_grad(set_to_none=True)  # an optimizer passes over weights without a gradient

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if not batch.completes_step:
            return
        pieces, self._pieces = self._pieces, []
        losses, self._piece_losses = self._piece_losses, []
        if not self.skipped:
            self.in_row = 0
            for kept, x in zip(self._statistics, running_statistics(pl_module), strict=True):
                kept.copy_(x)
            if losses and self.spike is not None:
                self._look_for_spike(trainer, pl_module, float(torch.stack(losses).float().mean()), pieces)
            return
        for kept, x in zip(self._statistics, running_statistics(pl_module), strict=True):
            x.copy_(kept)
        self.count, self.in_row = self.count + 1, self.in_row + 1
        pl_module.log("train/bad_steps", float(self.count), batch_size=len(batch))
        if trainer.is_global_zero:
            seen = int(pl_module.images_seen)  # type: ignore[arg-type]
            log.warning(
                "the step to %s images has a loss or gradient that is not finite: left out, %d in a row, %d in all",
                f"{seen:,}",
                self.in_row,
                self.count,
            )
        if self.in_row >= self.stop_after:
            capsule = Path(trainer.default_root_dir, self.capsule or "capsules")
            raise TooManyBadSteps(
                f"{self.in_row} steps in a row had a loss or gradient that is not finite: stopped, with the weights "
                f"from before them; look at the first by: ldm replay capsule={capsule}"
            )

    # ------------------------------------------------------------------------------------------------ persistence

    def state_dict(self) -> dict[str, Any]:
        return {
            "count": self.count,
            "in_row": self.in_row,
            "capsule": self.capsule,
            "losses": list(self.losses),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.count, self.in_row = state_dict["count"], state_dict["in_row"]
        self.capsule = state_dict["capsule"]
        self.losses = deque(state_dict["losses"], maxlen=self.window)

    # --------------------------------------------------------------------------------------------------- internals

    def _write_capsule(self, trainer: Trainer, module: LightningModule) -> None:
        run = Path(trainer.default_root_dir)
        folder = capsule_folder(run, int(module.images_seen))  # type: ignore[arg-type]
        self.capsule = str(folder.relative_to(run))
        try:
            with untimed(trainer):
                write_capsule(folder, trainer, module, pieces=self._pieces, losses=self._piece_losses)
        except OSError as error:
            log.warning("the capsule %s could not be written: %s", folder, error)

    def _look_for_spike(
        self, trainer: Trainer, module: LightningModule, loss: float, pieces: Iterable[Batch]
    ) -> None:
        threshold = spike_threshold(self.losses, self.spike or 0.0)
        if loss > threshold:
            note = {
                "images_seen": int(module.images_seen),  # type: ignore[arg-type]
                "rank": trainer.global_rank,
                "loss": loss,
                "threshold": threshold,
                "keys": [key for piece in pieces for key in piece.keys],
            }
            try:
                with (Path(trainer.default_root_dir) / "spikes.jsonl").open("a") as file:
                    file.write(json.dumps(note) + "\n")
            except OSError as error:
                log.warning("a spike of the loss could not be noted: %s", error)
        self.losses.append(loss)


def spike_threshold(losses: Iterable[float], spike: float) -> float:
    """Median + spike * 1.4826 * median absolute deviation; infinite for too few losses."""
    losses = list(losses)
    if len(losses) < FEWEST:
        return math.inf
    middle = median(losses)
    return middle + spike * MAD_TO_SIGMA * median(abs(loss - middle) for loss in losses)


def gradient_norm(trainer: Trainer, optimizer: torch.optim.Optimizer) -> Tensor:
    """Of all gradients together, over the shares of all processes: as ClipGradients has just found it, or by itself."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, ClipGradients) and callback.norm is not None:
            return callback.norm
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    return full(nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None]))


def running_statistics(module: nn.Module) -> list[Tensor]:
    """What batch normalisation remembers: the only thing that a forward pass changes."""
    found = []
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            found += [
                x for x in (part.running_mean, part.running_var, part.num_batches_tracked) if x is not None
            ]
    return found


def is_skipped(trainer: Trainer) -> bool:
    """Whether the step that was just made was left out."""
    return any(isinstance(callback, BadSteps) and callback.skipped for callback in trainer.callbacks)  # type: ignore[attr-defined]
