"""Exponential moving averages of the trained weights: what is validated, sampled and evaluated.

The averaging itself is ``torch.optim.swa_utils`` (Polyak & Juditsky 1992, "Acceleration of stochastic approximation
by averaging"); here stands when it happens, where it is kept, and who gets to see which weights.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

log = logging.getLogger(__name__)


class EMA(Callback):
    """Average ``module.parts()`` after each optimizer step; validation runs on the average.

    List it first among the callbacks, so that those behind it see the average of the step that has just been made.

    Args:
        decay: weight of the old average per optimizer step, in [0, 1). 0.999 remembers about 1,000 steps.
        warmup: let the average's memory grow with the run, min(decay, (1 + n) / (10 + n)) after n steps, so that
            early pictures do not show the random start.
    """

    def __init__(self, *, decay: float = 0.999, warmup: bool = True) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"EMA decay={decay} must lie in [0, 1), e.g. 0.999")
        self.decay = decay
        self.warmup = warmup
        self.num_updates = 0
        self._average: AveragedModel | None = None
        self._step_seen = (
            0  # Lightning's step counter at the last update: tells a real step from an accumulated one
        )
        self._swapped = False

    def decay_at(self, num_updates: int) -> float:
        """The decay after ``num_updates`` steps."""
        return min(self.decay, (1 + num_updates) / (10 + num_updates)) if self.warmup else self.decay

    @contextmanager
    def weights_in(self, module: LightningModule) -> Iterator[str]:
        """Put the averaged weights into the module for a while; yields their name, for labels: "EMA weights"."""
        if self._swapped or self._average is None:
            yield "EMA weights" if self._swapped else "online weights"
            return
        self._swap(module)
        try:
            yield "EMA weights"
        finally:
            self._swap(module)

    # ------------------------------------------------------------------------------------------ Lightning hooks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._average = AveragedModel(_parts(pl_module), multi_avg_fn=self._update)
            self._average.requires_grad_(False)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._average is not None
        # The average lives where the weights live; its step counter stays on the CPU, where reading it costs nothing.
        self._average.module.to(pl_module.device)
        rank_zero_info(
            f"EMA: validation and sample grids use averaged weights (decay {self.decay:g} per step)"
        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step_seen = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert self._average is not None
        if trainer.global_step == self._step_seen:  # gradients were only accumulated
            return
        self._step_seen = trainer.global_step
        self._average.update_parameters(_parts(pl_module))
        self.num_updates += 1

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._average is not None:
            self._swap(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._swapped:
            self._swap(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._swapped:
            self._swap(pl_module)

    # ------------------------------------------------------------------------------------------------ persistence

    def state_dict(self) -> dict[str, Any]:
        return {"num_updates": self.num_updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.num_updates = state_dict["num_updates"]
        if self._average is not None:
            self._average.n_averaged.fill_(self.num_updates)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._swapped:
            raise RuntimeError(
                "a checkpoint cannot be saved while the averaged weights stand in for the trained"
            )
        if self._average is not None:
            checkpoint["ema"] = {
                name: part.state_dict() for name, part in self._average.module.named_children()
            }

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._average is None:
            return
        if "ema" not in checkpoint:
            log.warning("the checkpoint has no averaged weights: the average starts from its trained weights")
        saved = checkpoint.get("ema") or {
            name: part.state_dict() for name, part in _parts(pl_module).named_children()
        }
        for name, part in self._average.module.named_children():
            part.load_state_dict(saved[name])

    # --------------------------------------------------------------------------------------------------- internals

    def _update(self, averages: Any, weights: Any, num_averaged: Tensor | int) -> None:
        # Our own count, not num_averaged, which torch moves to the weights' device: reading it would halt the GPU.
        get_ema_multi_avg_fn(self.decay_at(self.num_updates))(averages, weights, num_averaged)

    def _swap(self, module: LightningModule) -> None:
        """Exchange the storages: no copy, and optimizers keep their parameters."""
        assert self._average is not None
        average: nn.Module = self._average.module
        online = _parts(module)
        # Lightning brings the module back to the CPU after training: the average follows.
        average.to(next(online.parameters()).device)
        for a, b in zip(
            [*average.parameters(), *average.buffers()],
            [*online.parameters(), *online.buffers()],
            strict=True,
        ):
            a.data, b.data = b.data, a.data
        self._swapped = not self._swapped


def _parts(module: LightningModule) -> nn.ModuleDict:
    return nn.ModuleDict(module.parts())  # type: ignore[operator]


def averaged_weights(trainer: Trainer, module: LightningModule) -> AbstractContextManager[str]:
    """``EMA.weights_in`` of the trainer's EMA callback; without one, a context of the weights as they are."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, EMA):
            return callback.weights_in(module)
    return _as_they_are()


@contextmanager
def _as_they_are() -> Iterator[str]:
    yield "online weights"
