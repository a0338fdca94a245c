"""Moving averages of the trained weights: what is validated, sampled and evaluated.

An average smooths over the last part of training (Polyak & Juditsky 1992, "Acceleration of stochastic approximation
by averaging"). Here stands when it happens and who gets to see which weights; the numbers are in ``averages.py``.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from ldm.training.averages import Average, State
from ldm.training.bad_steps import is_open, is_skipped

log = logging.getLogger(__name__)


class WeightAverage(Callback, ABC):
    """Average ``module.parts()`` after each optimizer step; validation runs on one of the averages.

    List it first among the callbacks, so that those behind it see the average of the step that has just been made.

    Args:
        names: Of the averages kept, one for each of ``shares``.
        shown: Which of them is validated, sampled and evaluated.
        label: What pictures of it are labelled with.
        on_cpu: Keep them in the host's memory; see ``Average``.
    """

    def __init__(self, *, names: Sequence[str], shown: int, label: str, on_cpu: bool) -> None:
        self.names = list(names)
        self.shown = shown
        self.label = label
        self.on_cpu = on_cpu
        self.num_updates = 0
        self.averages: list[Average] = []
        self._loaded: dict[str, State] = {}
        self._step_seen = (
            0  # Lightning's counter at the last update: tells a real step from an accumulated one
        )
        self._swapped = False
        self._waits: Trainer | None = None  # with a step that the averages have not seen

    @abstractmethod
    def shares(self, num_updates: int) -> Sequence[float]:
        """How far each average moves towards the weights of the next step, after ``num_updates`` of them."""

    @contextmanager
    def weights_in(self, module: LightningModule) -> Iterator[str]:
        """Put the averaged weights into the module for a while; yields their name, for labels: "EMA weights"."""
        self.catch_up()
        if self._swapped or not self.averages:
            yield self.label if self._swapped else "online weights"
            return
        self._swap()
        try:
            yield self.label
        finally:
            self._swap()

    # ------------------------------------------------------------------------------------------ Lightning hooks

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not before: now the weights are where they stay, spread over processes if they are to be.
        parts = pl_module.parts()  # type: ignore[operator]
        self.averages = [Average(parts, on_cpu=self.on_cpu) for _ in self.names]
        for name, average in zip(self.names, self.averages, strict=True):
            if name in self._loaded:
                average.load(self._loaded[name])
        self._loaded = {}
        rank_zero_info(f"EMA: validation and sample grids use averaged weights ({self.names[self.shown]})")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step_seen = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step_seen:  # gradients were only accumulated
            return
        self._step_seen = trainer.global_step
        self._waits = trainer
        if not is_open(trainer):
            self.catch_up()

    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.catch_up()

    def catch_up(self) -> None:
        """Take the last step's weights in, if that has waited until it is known whether the step was left out.

        Nothing changes them before the gradients of the next are cleared, and by then a GPU has got there.
        """
        trainer, self._waits = self._waits, None
        if trainer is None or is_skipped(trainer):
            return
        for average, share in zip(self.averages, self.shares(self.num_updates), strict=True):
            average.move(share)
        self.num_updates += 1

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.catch_up()
        if self.averages:
            self._swap()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._swapped:
            self._swap()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.put_back()

    def put_back(self) -> None:
        """Give the module its trained weights again, if the averaged ones stand in for them."""
        if self._swapped:
            self._swap()

    # ------------------------------------------------------------------------------------------------ persistence

    def state_dict(self) -> dict[str, Any]:
        self.catch_up()
        return {"num_updates": self.num_updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.num_updates = state_dict["num_updates"]

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.catch_up()
        if self._swapped:
            raise RuntimeError(
                "a checkpoint cannot be saved while the averaged weights stand in for the trained"
            )
        if self.averages:
            states = [average.shares() for average in self.averages]
            checkpoint["ema"] = states[self.shown]
            others = {
                name: state
                for i, (name, state) in enumerate(zip(self.names, states, strict=True))
                if i != self.shown
            }
            if others:
                checkpoint["other_averages"] = others

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        saved = dict(checkpoint.get("other_averages", {}))
        if "ema" in checkpoint:
            saved[self.names[self.shown]] = checkpoint["ema"]
        for name in self.names:
            if name not in saved:
                log.warning(f"the checkpoint has no average {name}: it starts from the trained weights")
        self._loaded = {name: state for name, state in saved.items() if name in self.names}

    # --------------------------------------------------------------------------------------------------- internals

    def _swap(self) -> None:
        self.averages[self.shown].exchange()
        self._swapped = not self._swapped


class EMA(WeightAverage):
    """The classic exponential moving average.

    Args:
        decay: weight of the old average per optimizer step, in [0, 1). 0.999 remembers about 1,000 steps.
        warmup: let the average's memory grow with the run, min(decay, (1 + n) / (10 + n)) after n steps, so that
            early pictures do not show the random start.
        on_cpu: keep it in the host's memory: a GPU holds one copy of the weights less, and every step copies them.
    """

    def __init__(self, *, decay: float = 0.999, warmup: bool = True, on_cpu: bool = False) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"EMA decay={decay} must lie in [0, 1), e.g. 0.999")
        super().__init__(names=[f"decay {decay:g} per step"], shown=0, label="EMA weights", on_cpu=on_cpu)
        self.decay = decay
        self.warmup = warmup

    def decay_at(self, num_updates: int) -> float:
        """The decay after ``num_updates`` steps."""
        return min(self.decay, (1 + num_updates) / (10 + num_updates)) if self.warmup else self.decay

    def shares(self, num_updates: int) -> Sequence[float]:
        return [1 - self.decay_at(num_updates) if num_updates else 1.0]


def averaged_weights(trainer: Trainer, module: LightningModule) -> AbstractContextManager[str]:
    """``weights_in`` of the trainer's average of the weights; without one, a context of the weights as they are."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, WeightAverage):
            return callback.weights_in(module)
    return _as_they_are()


def put_back(trainer: Trainer) -> None:
    """Of the trainer's averages: see ``WeightAverage.put_back``."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, WeightAverage):
            callback.put_back()


@contextmanager
def _as_they_are() -> Iterator[str]:
    yield "online weights"
