"""Small callbacks around the training step. What they do is due by images seen, never by steps.

A LightningModule here has ``images_seen``, the number of pictures trained on so far over all processes, and has
counted the current batch when the ``on_train_batch_end`` of callbacks runs. The run folder is the trainer's
``default_root_dir``.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from ldm.training.flops import StepCounter, peak_memory, peak_rate
from ldm.training.leaving import LeftUndone
from ldm.training.optim import weights_apart
from ldm.training.plots import draw_metrics
from ldm.training.sharded import full

log = logging.getLogger(__name__)


def crossed(before: int, now: int, every: int) -> bool:
    """Whether a counter passed a multiple of ``every`` on its way from ``before`` to ``now``, however far it went."""
    return now // every > before // every


def is_logged(trainer: Trainer) -> bool:
    """Whether the step that is being made is one whose metrics are written down."""
    loop = trainer.fit_loop.epoch_loop
    return (loop._batches_that_stepped + 1) % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]


class EveryNumImages(Callback, ABC):
    """Base of the callbacks that act each time ``every_num_images`` more pictures were trained on, and at the end.

    Args:
        every_num_images: None acts at the end only.
        at_end: act once more when the training ends, unless it just did.
    """

    def __init__(self, *, every_num_images: int | None, at_end: bool = True) -> None:
        if every_num_images is not None and every_num_images < 1:
            raise ValueError(
                f"{type(self).__name__}: every_num_images={every_num_images} must be positive, or null"
            )
        self.every_num_images = every_num_images
        self.at_end = at_end
        self._seen = 0  # images seen when last looked
        self._acted = -1  # images seen when last acted
        self._left_at: int | None = None  # images seen when it was given up because the training had to leave

    @abstractmethod
    def act(self, trainer: Trainer, module: LightningModule) -> None:
        """Do it; called on all processes. May raise ``LeftUndone``: it is then done when the training goes on."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._seen = _images_seen(pl_module)
        if self._left_at == self._seen:
            self._act(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        before, self._seen = self._seen, _images_seen(pl_module)
        if self.every_num_images is not None and crossed(before, self._seen, self.every_num_images):
            self._act(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.at_end and self._acted != self._seen:
            self._act(trainer, pl_module)

    @property
    def is_left(self) -> bool:
        """Whether it waits for the training to go on."""
        return self._left_at is not None

    def state_dict(self) -> dict[str, Any]:
        return {} if self._left_at is None else {"left_at": self._left_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._left_at = state_dict.get("left_at")

    def _act(self, trainer: Trainer, module: LightningModule) -> None:
        self._acted, self._left_at = self._seen, None
        with untimed(trainer):
            try:
                self.act(trainer, module)
            except LeftUndone:
                self._left_at = self._seen
            except OSError as error:  # a full disk: pictures are no reason to stop
                log.warning("%s could not be written: %s", type(self).__name__, error)


class StopAtImages(Callback):
    """End the training once ``num_images`` pictures were trained on; a last validation follows.

    Counts pictures where Lightning's ``max_steps`` counts optimizer steps, of which an autoencoder with a
    discriminator makes two per batch.
    """

    def __init__(self, *, num_images: int) -> None:
        self.num_images = num_images

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if _images_seen(pl_module) >= self.num_images:
            trainer.should_stop = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if _images_seen(pl_module) >= self.num_images:
            trainer.should_stop = True


class ValidateEvery(Callback):
    """Validate each time about ``num_images`` more pictures were trained on: whole batches, at least one.

    Lightning counts batches; the data module's global ``batch_size`` tells how many that is.
    """

    def __init__(self, *, num_images: int) -> None:
        self.num_images = num_images

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        batch_size = trainer.datamodule.batch_size  # type: ignore[attr-defined]
        pieces = trainer.accumulate_grad_batches  # of each step, and Lightning counts them
        trainer.val_check_interval = pieces * max(1, round(self.num_images / batch_size))
        trainer.check_val_every_n_epoch = None  # the data never ends, so there are no epochs to count

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """With the validation's numbers: they stand over what had been seen then, not at the last logged step."""
        if not trainer.sanity_checking:
            pl_module.log("train/images_seen", float(_images_seen(pl_module)), sync_dist=True)


class ClipGradients(Callback):
    """Scale gradients down to a norm of at most ``max_norm``; logs ``train/grad_norm`` before that.

    Weights that minimise losses of their own, an autoencoder and its discriminator, have norms of their own, and one
    each is logged: ``train/grad_norm_discriminator``.

    Lightning's gradient_clip_val refuses fused optimizers under mixed precision; this takes them, as nothing is
    scaled any more when it runs.
    """

    def __init__(self, *, max_norm: float = 1.0) -> None:
        if max_norm <= 0:
            raise ValueError(
                f"ClipGradients: max_norm={max_norm} must be positive; leave the callback out for none"
            )
        self.max_norm = max_norm
        self.norm: torch.Tensor | None = None  # of the step that is being made, before it is scaled

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        norms = {name: self._clip(weights) for name, weights in weights_apart(optimizer).items()}
        every = list(norms.values())
        self.norm = every[0] if len(every) == 1 else torch.stack(every).norm()
        if is_logged(trainer):
            pl_module.log_dict({f"train/grad_norm_{name}".rstrip("_"): x for name, x in norms.items()})

    def _clip(self, weights: list[nn.Parameter]) -> Tensor:
        """Scale the gradients of these; their norm before."""
        found = nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])
        # Under FSDP the norm is over all processes' shares, which torch puts together when asked for the whole.
        norm = full(found)
        if norm is found:
            found = torch.nan_to_num(
                norm, posinf=0.0
            )  # what cannot be scaled stays as it is, to be looked at
        nn.utils.clip_grads_with_norm_(weights, self.max_norm, found)
        return norm


class Throughput(Callback):
    """Log the speed of training over the last ``window`` batches.

    ``throughput/samples_per_second`` counts the pictures of all processes; validation, grids and checkpoints are
    kept out of it. ``throughput/data_wait_ms`` is the mean time a step waited for its batch. ``throughput/mfu`` is the
    share of the device's best rate that the model's own work reached (2204.02311, appendix B): the matrix products,
    convolutions and attention of a step, counted once, without what checkpointing computes again.
    ``throughput/peak_memory_gib`` is the most that this process's device held.

    Args:
        window: Batches; of accumulated gradients each piece is one.
        mfu: Count the operations, in the first step, which takes longer for it.
    """

    def __init__(self, *, window: int = 50, mfu: bool = True) -> None:
        self.window = window
        self.mfu = mfu
        self.flops: float | None = None  # of this process, for one batch
        self.peak = float("inf")  # FLOP/s
        self._counter: StepCounter | None = None
        self._counting_step = False
        self.paused = 0.0  # seconds since the window began that were not training
        self._batch_ended: tuple[float, float] | None = None  # when, and what ``paused`` was then
        self._validation = (0.0, 0.0)  # the same for the start of validation
        self._restart(0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restart(_images_seen(pl_module))
        self._batch_ended = (self._began, 0.0)  # the first batch is waited for, too

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._batch_ended is not None:
            ended, paused = self._batch_ended
            self._waited += time.perf_counter() - ended - (self.paused - paused)
        if self.mfu and self.flops is None:
            self._counter, self._counting_step = StepCounter(), True
            self._counter.begin()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if self._counter is not None:
            execution = getattr(pl_module, "execution", None)
            checkpointed = bool(execution and execution.checkpoint_blocks)
            self._counter.forward_is_done(pl_module.parts(), checkpointed=checkpointed)  # type: ignore[operator]

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._counter is not None:
            self.flops, self._counter = self._counter.end(), None
            self.peak = peak_rate(pl_module.device, str(trainer.precision))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._counter is not None:
            self._counter.end()
            self._counter = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._batches += 1
        if self._counting_step:  # slower than others: the window begins behind it
            self._counting_step = False
            self._restart(_images_seen(pl_module))
        elif self._batches >= self.window:
            if pl_module.device.type == "cuda":  # once per window: work handed to the GPU counts when done
                torch.cuda.synchronize(pl_module.device)
            seen = _images_seen(pl_module)
            elapsed = time.perf_counter() - self._began - self.paused
            pl_module.log("throughput/samples_per_second", (seen - self._first) / max(elapsed, 1e-9))
            pl_module.log("throughput/data_wait_ms", 1000 * self._waited / self._batches)
            pl_module.log("throughput/peak_memory_gib", peak_memory(pl_module.device))
            if self.flops is not None:
                rate = self.flops * self._batches / max(elapsed, 1e-9)
                pl_module.log("throughput/mfu", rate / self.peak)
            self._restart(seen)
        self._batch_ended = (time.perf_counter(), self.paused)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validation = (time.perf_counter(), self.paused)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        began, paused = self._validation  # what paused inside validation is not counted a second time
        self.paused = paused + time.perf_counter() - began

    def _restart(self, images_seen: int) -> None:
        self._began = time.perf_counter()
        self._first = images_seen
        self._batches = 0
        self._waited = 0.0
        self.paused = 0.0
        self._batch_ended = None


class LossPlots(Callback):
    """Draw the curves of metrics.csv into <run>/plots at each validation and at the end."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._draw(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw(trainer)

    def _draw(self, trainer: Trainer) -> None:
        folder = Path(trainer.default_root_dir)
        if trainer.is_global_zero and (folder / "metrics.csv").is_file():
            with untimed(trainer):
                try:
                    draw_metrics(folder / "metrics.csv", folder / "plots")
                except OSError as error:
                    log.warning("plots could not be written: %s", error)


@contextmanager
def untimed(trainer: Trainer) -> Iterator[None]:
    """Keep what runs inside out of the speed that ``Throughput`` tells."""
    began = time.perf_counter()
    try:
        yield
    finally:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Throughput):
                callback.paused += time.perf_counter() - began


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients inside; afterwards each submodule is in the mode it was in before."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes.items():
            part.training = training


def _images_seen(module: LightningModule) -> int:
    return int(module.images_seen)  # type: ignore[arg-type]
