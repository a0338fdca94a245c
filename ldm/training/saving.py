"""When checkpoints are written, and how a run is stopped by hand without losing anything."""

from __future__ import annotations

import math
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from ldm.training.callbacks import crossed, untimed
from ldm.training.checkpoint import foreign_entries, read_checkpoint


class Interrupted(SystemExit):
    """The run was stopped by Ctrl-C. Python leaves with exit code 130, as shells expect after SIGINT."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGINT)


class Checkpoints(Checkpoint):
    """Write ``<run>/checkpoints``: ``last.ckpt``, ``best.ckpt`` and, if wanted, copies that are kept.

    Files are written beside their place and moved there when complete, so a reader or a power cut never meets half a
    checkpoint. Lightning's ModelCheckpoint is not used because it counts optimizer steps; this counts pictures.

    Ctrl-C is answered at the end of the step: the checkpoint is written, then ``Interrupted`` leaves the training.
    A second Ctrl-C leaves at once, with the last checkpoint there was.

    Args:
        every_num_images: how often ``last.ckpt`` is replaced; always at the end of the training, too.
        keep_every_num_images: keep a copy ``images_<count>.ckpt`` this often; null keeps none.
        monitor: the validation metric whose best value ``best.ckpt`` has; null writes none.
        mode: "min" or "max", which value of it is best.
    """

    def __init__(
        self,
        *,
        every_num_images: int,
        keep_every_num_images: int | None = None,
        monitor: str | None = "val/loss",
        mode: str = "min",
    ) -> None:
        if mode not in ("min", "max"):
            raise ValueError(f"Checkpoints: mode={mode!r} is not known: say 'min' or 'max'")
        if every_num_images < 1 or (keep_every_num_images is not None and keep_every_num_images < 1):
            raise ValueError("Checkpoints: every_num_images and keep_every_num_images must be positive")
        self.every_num_images = every_num_images
        self.keep_every_num_images = keep_every_num_images
        self.monitor = monitor
        self.mode = mode
        self.best_value: float | None = None
        self._seen = 0
        self._saved_at = -1  # images seen in last.ckpt
        self._interrupts = 0
        self._leaving = False
        self._former_handler: Any = None

    # ------------------------------------------------------------------------------------------ Lightning hooks

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._seen = int(pl_module.images_seen)  # type: ignore[arg-type]
        best = _folder(trainer) / "best.ckpt"
        if best.is_file():  # it may be newer than the checkpoint that training goes on from
            self.best_value = read_checkpoint(best)["callbacks"][self.state_key]["best_value"]
        self._listen()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._leaving:
            raise Interrupted

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not batch.completes_step:  # accumulated gradients are in no checkpoint
            return
        before, self._seen = self._seen, int(pl_module.images_seen)  # type: ignore[arg-type]
        if self._seen <= before:
            raise RuntimeError(
                f"{type(pl_module).__name__}.images_seen stood still at {before}: count the batch in training_step; "
                "the module's own on_train_batch_end runs after the checkpoint was written"
            )
        keep = self.keep_every_num_images is not None and crossed(
            before, self._seen, self.keep_every_num_images
        )
        # Saved now, left at the start of the next step: what this step logs and a validation that is due still happen.
        self._leaving = self._any_interrupted(trainer)
        if keep or self._leaving or trainer.should_stop or crossed(before, self._seen, self.every_num_images):
            last = self._save_last(trainer)
            if keep and trainer.is_global_zero and last.exists():
                _keep(last, last.with_name(f"images_{self._seen:09d}.ckpt"))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.monitor is None or trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        if self.monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(trainer.callback_metrics)) or "none"
            raise ValueError(
                f"Checkpoints: the metric monitor={self.monitor} was not logged; there are: {known}"
            )
        value = float(trainer.callback_metrics[self.monitor])
        if self._is_better(value):
            self.best_value = value
            self._save(trainer, "best.ckpt")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save_last(trainer)
        self._stop_listening()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop_listening()
        if isinstance(exception, Interrupted | KeyboardInterrupt) and trainer.is_global_zero:
            print(self._farewell(Path(trainer.default_root_dir)), file=sys.stderr, flush=True)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if foreign := list(foreign_entries(checkpoint)):
            raise TypeError(
                f"a checkpoint holds plain data only, so that it loads with weights_only=True, but {foreign[0]}"
            )

    def state_dict(self) -> dict[str, Any]:
        return {"best_value": self.best_value}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_value = state_dict["best_value"]

    # --------------------------------------------------------------------------------------------------- internals

    def _is_better(self, value: float) -> bool:
        if math.isnan(value):
            return False
        if self.best_value is None:
            return True
        return value < self.best_value if self.mode == "min" else value > self.best_value

    def _save_last(self, trainer: Trainer) -> Path:
        if self._saved_at != self._seen:
            self._save(trainer, "last.ckpt")
            self._saved_at = self._seen
        return _folder(trainer) / "last.ckpt"

    def _save(self, trainer: Trainer, name: str) -> None:
        """On all processes, since gathering the state may need them all."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        path = _folder(trainer) / name
        unfinished = path.with_name(f".{name}.unfinished")
        with untimed(trainer):
            trainer.save_checkpoint(unfinished, weights_only=False)
            if trainer.is_global_zero:
                os.replace(unfinished, path)
            trainer.strategy.barrier("checkpoint in its place")

    def _any_interrupted(self, trainer: Trainer) -> bool:
        if trainer.world_size == 1:
            return self._interrupts > 0
        # The key press reaches the processes at different steps; all must agree on the step that is the last.
        return trainer.strategy.reduce_boolean_decision(self._interrupts > 0, all=False)

    def _listen(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._former_handler = signal.signal(signal.SIGINT, self._on_interrupt)

    def _stop_listening(self) -> None:
        if self._former_handler is not None:
            signal.signal(signal.SIGINT, self._former_handler)
            self._former_handler = None

    def _on_interrupt(self, number: int, frame: Any) -> None:
        self._interrupts += 1
        if self._interrupts > 1:
            raise Interrupted
        print("\nStopping after this step; Ctrl-C once more leaves at once.", file=sys.stderr, flush=True)

    def _farewell(self, run: Path) -> str:
        if self._saved_at < 0 and not (run / "checkpoints" / "last.ckpt").exists():
            return f"\nStopped before the first checkpoint; nothing to continue in {run}"
        at = f" at {self._saved_at:,} images" if self._saved_at >= 0 else ""
        return f"\nStopped; checkpoint saved{at}. To continue:  python train.py resume={run}"


@contextmanager
def interruptible() -> Iterator[None]:
    """Around ``trainer.fit``: a Ctrl-C before the first step leaves with exit code 130 as well, not Lightning's 1."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted from None
    except SystemExit as leaving:
        if isinstance(leaving.__context__, KeyboardInterrupt):
            raise Interrupted from None
        raise


def _folder(trainer: Trainer) -> Path:
    return Path(trainer.default_root_dir) / "checkpoints"


def _keep(source: Path, target: Path) -> None:
    """A second name for the file: free, and safe because files here are replaced, never written into."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # file systems without hard links
        shutil.copyfile(source, target)
