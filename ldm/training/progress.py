"""The progress bar: pictures trained on, out of how many, with the losses and the time that is left."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich import progress
from rich.console import Console


class ImageProgress(ProgressBar):
    """A bar in a terminal; in a log file a plain line now and then.

    Args:
        num_images: pictures to train on.
        metrics: logged metrics to show, where they exist.
        line_every_seconds: how often a line is printed where there is no terminal.
    """

    def __init__(
        self,
        *,
        num_images: int,
        metrics: Sequence[str] = ("train/loss", "val/loss", "val/psnr"),
        line_every_seconds: float = 30.0,
    ) -> None:
        super().__init__()
        self.num_images = num_images
        self.metrics = list(metrics)
        self.line_every_seconds = line_every_seconds
        self._enabled = True
        self._bar: progress.Progress | None = None
        self._task = progress.TaskID(0)
        self._shown_at = 0.0
        self._began = (0.0, 0)  # when, and at how many images

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        seen = int(pl_module.images_seen)  # type: ignore[arg-type]
        self._began = (time.monotonic(), seen)
        if self._enabled and sys.stderr.isatty():
            self._bar = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(bar_width=30),
                progress.TextColumn("{task.completed:,.0f}/{task.total:,.0f} images"),
                progress.TextColumn("{task.fields[speed]}  {task.fields[values]}"),
                progress.TimeRemainingColumn(),
                console=Console(stderr=True),
                refresh_per_second=4,
            )
            self._task = self._bar.add_task(
                "training", total=self.num_images, completed=seen, speed="", values=""
            )
            self._bar.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        pause = 0.25 if self._bar else self.line_every_seconds
        if (
            self._enabled and now - self._shown_at >= pause
        ):  # reading a metric waits for the GPU: not at every step
            self._shown_at = now
            self._show(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bar:
            self._bar.update(self._task, description="validation")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bar:
            self._bar.update(self._task, description="training")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close(trainer, pl_module)

    def print(self, *args: Any, **kwargs: Any) -> None:
        if self._bar:
            self._bar.console.print(*args)
        else:
            print(*args, **kwargs)

    def _show(self, trainer: Trainer, module: LightningModule) -> None:
        seen = int(module.images_seen)  # type: ignore[arg-type]
        logged = trainer.callback_metrics
        values = "  ".join(f"{name} {float(logged[name]):.4g}" for name in self.metrics if name in logged)
        elapsed = max(time.monotonic() - self._began[0], 1e-9)
        speed = f"{(seen - self._began[1]) / elapsed:,.0f}/s"
        if self._bar:
            self._bar.update(self._task, completed=seen, speed=speed, values=values)
        else:
            share = f"{100 * seen / self.num_images:3.0f} %"
            print(
                f"{share}  {seen:,}/{self.num_images:,} images  {speed}  {values}",
                file=sys.stderr,
                flush=True,
            )

    def _close(self, trainer: Trainer, module: LightningModule) -> None:
        if self._enabled:
            self._show(trainer, module)
        if self._bar:
            self._bar.stop()
            self._bar = None
        self._enabled = False
