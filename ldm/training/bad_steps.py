"""Steps that must not be made, of a loss or gradient that is not finite; and losses that stand out, with their keys."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from ldm.interfaces import Batch
from ldm.training.callbacks import ClipGradients, untimed
from ldm.training.capsule import capsule_folder, write_capsule
from ldm.training.outcome import Step, can_leave_out, leaves_out
from ldm.training.sharded import full
from ldm.training.spikes import FEWEST, LastLosses

log = logging.getLogger(__name__)


class TooManyBadSteps(ValueError):
    """The training cannot go on by itself."""


class BadSteps(Callback):
    """Leave out each step whose loss or gradient is not finite; stop after several in a row.

    Neither weights nor optimizer state nor averages nor running statistics see such a step, so no checkpoint does. It
    is counted in ``train/bad_steps``, and its pictures as seen. The first one of a run writes a capsule: ``ldm replay``
    makes that step again. All processes decide alike without asking each other: a loss that is not finite makes its
    gradient so, and the sum over the processes carries that to all.

    List it after the clipping of gradients, whose norm it reads. On a GPU nobody waits for it: a fused optimizer on the
    device leaves the step out, and what else depends on it is done one step later, before the gradients are cleared
    (``settle``), or as soon as somebody asks. With other optimizers, and under FSDP, each step waits for its backward
    pass.

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
        self.losses = LastLosses(window)
        self._pieces: list[Batch] = []
        self._piece_losses: list[Tensor] = []
        # Running ones, which a forward pass has changed before anything is known: as they were, and where they are.
        self._statistics: list[tuple[Tensor, Tensor]] = []
        self._step: Step | None = None  # the last one that was made
        self._open = False  # nobody has asked yet what became of it
        self._logged = 0  # bad steps
        self._trainer: Trainer | None = None

    # ------------------------------------------------------------------------------------------ Lightning hooks

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._statistics = [(x.clone(), x) for x in running_statistics(pl_module)]
        self._logged = self.count
        self._trainer = trainer

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        if not self._pieces and not self._open:
            self.skipped = False
        self._pieces.append(batch)

    def on_before_zero_grad(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        self.settle(trainer)
        self._refuse_too_many(trainer)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        kept = loss.detach()
        self._piece_losses.append(kept)
        if loss.requires_grad:
            loss.register_hook(lambda gradient: gradient + 0 * kept)  # plus nothing, or what is not a number

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        self._step = step = Step(
            gradient_norm(trainer, optimizer),
            tuple(self._piece_losses),
            tuple(self._pieces),
            images_seen=int(pl_module.images_seen),  # type: ignore[arg-type]
            global_step=trainer.global_step,
        )
        if not step.is_known and can_leave_out(optimizer, trainer, pl_module):
            leaves_out(optimizer, step)
            self._open, self.skipped = True, False
        elif step.is_bad():
            self.skipped = True
            self._write_capsule(trainer, pl_module, step)
            optimizer.zero_grad(set_to_none=True)  # an optimizer passes over weights without a gradient

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if not batch.completes_step or self._step is None:
            return
        self._pieces, self._piece_losses = [], []
        for kept, x in self._statistics:
            bad = self._step.bad_there if self._open else torch.tensor(self.skipped, device=x.device)
            x.copy_(torch.where(bad, kept, x))
            kept.copy_(x)
        if not self._open:
            self._account(trainer, self._step)
        if self.count != self._logged:
            pl_module.log("train/bad_steps", float(self.count), batch_size=len(batch))
            self._logged = self.count
        self._refuse_too_many(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.settle(trainer)

    def settle(self, trainer: Trainer) -> None:
        """Do what had to wait until it is known what became of the last step. Its gradients must still be there."""
        if not self._open or self._step is None:
            return
        self._open, self.skipped = False, self._step.is_bad()
        if self.skipped:
            self._write_capsule(trainer, trainer.lightning_module, self._step)
        self._account(trainer, self._step)

    # ------------------------------------------------------------------------------------------------ persistence

    def state_dict(self) -> dict[str, Any]:
        if self._trainer is not None:
            self.settle(self._trainer)
        return {
            "count": self.count,
            "in_row": self.in_row,
            "capsule": self.capsule,
            "losses": list(self.losses.in_order),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.count, self.in_row = state_dict["count"], state_dict["in_row"]
        self.capsule = state_dict["capsule"]
        self.losses = LastLosses(self.window, state_dict["losses"])

    # --------------------------------------------------------------------------------------------------- internals

    def _account(self, trainer: Trainer, step: Step) -> None:
        if not self.skipped:
            self.in_row = 0
            if self.spike is not None and step.losses:
                self._look_for_spike(trainer, step)
            return
        self.count, self.in_row = self.count + 1, self.in_row + 1
        if trainer.is_global_zero:
            log.warning(
                "the step to %s images has a loss or gradient that is not finite: left out, %d in a row, %d in all",
                f"{step.images_seen:,}",
                self.in_row,
                self.count,
            )

    def _refuse_too_many(self, trainer: Trainer) -> None:
        if self.in_row >= self.stop_after and self.skipped:
            capsule = Path(trainer.default_root_dir, self.capsule or "capsules")
            raise TooManyBadSteps(
                f"{self.in_row} steps in a row had a loss or gradient that is not finite: stopped, with the weights "
                f"from before them; look at the first by: ldm replay capsule={capsule}"
            )

    def _write_capsule(self, trainer: Trainer, module: LightningModule, step: Step) -> None:
        if self.capsule is not None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        run = Path(trainer.default_root_dir)
        folder = capsule_folder(run, step.images_seen)
        self.capsule = str(folder.relative_to(run))
        # They have seen this step, or the next one's forward pass, whose backward pass may be due: .data hides from it
        # what is put back before.
        now = [x.clone() for _, x in self._statistics]
        for kept, x in self._statistics:
            x.data.copy_(kept)
        try:
            with untimed(trainer):
                write_capsule(folder, trainer, module, step)
        except OSError as error:
            log.warning("the capsule %s could not be written: %s", folder, error)
        for (_, x), value in zip(self._statistics, now, strict=True):
            x.data.copy_(value)

    def _look_for_spike(self, trainer: Trainer, step: Step) -> None:
        loss, spike = step.loss(), self.spike or 0.0
        if self.losses.is_spike(loss, spike):
            note = {
                "images_seen": step.images_seen,
                "rank": trainer.global_rank,
                "loss": loss,
                "threshold": self.losses.threshold(spike),
                "keys": [key for piece in step.pieces for key in piece.keys],
            }
            try:
                with (Path(trainer.default_root_dir) / "spikes.jsonl").open("a") as file:
                    file.write(json.dumps(note) + "\n")
            except OSError as error:
                log.warning("a spike of the loss could not be noted: %s", error)
        self.losses.add(loss)


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


def is_open(trainer: Trainer) -> bool:
    """Whether asking about the step that was just made would wait for it."""
    return any(isinstance(callback, BadSteps) and callback._open for callback in trainer.callbacks)  # type: ignore[attr-defined]


def is_skipped(trainer: Trainer) -> bool:
    """Whether the step that was just made was left out; where that is still open, waits for it."""
    settle(trainer)
    return any(isinstance(callback, BadSteps) and callback.skipped for callback in trainer.callbacks)  # type: ignore[attr-defined]


def settle(trainer: Trainer) -> None:
    """Before the gradients of the step that was just made are cleared."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, BadSteps):
            callback.settle(trainer)
